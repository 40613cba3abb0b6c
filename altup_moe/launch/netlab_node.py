"""One node of netlab, run as a script: `launch.node` with torchrun's arguments."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # altup_moe, also where it is not installed
    from altup_moe.launch import node

    node.leave(node.main(sys.argv[1:]))  # netlab reports the node that ends first, so no node may be late
