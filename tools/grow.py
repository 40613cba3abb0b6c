#!/usr/bin/env python3
"""`altup-moe grow` under its old name, in a checkout."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository's root instead of tools/

    from altup_moe.cli import main

    sys.exit(main(["grow", *sys.argv[1:]]))
