#!/usr/bin/env python3
"""Pack this checkout and the wheels that a GPU machine lacks into one file: tools/pack_gpu.py gpu.tar.gz."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository's root instead of tools/

    from altup_moe.bench.gpu.archive import main
    from altup_moe.config import UserError

    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"pack_gpu: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
