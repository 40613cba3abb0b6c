"""`python -m altup_moe` is `altup-moe`."""

import sys

from altup_moe.cli import main

if __name__ == "__main__":
    sys.exit(main())
