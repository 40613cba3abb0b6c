"""`python -m docs.generate [--check]`."""

from __future__ import annotations

import sys

from docs.generate.pages import COMMAND, DOCS, differing


def main(args: list[str]) -> int:
    """Write the generated pages that differ, or with --check name them. Returns the exit code."""
    if args not in ([], ["--check"]):
        print(f"usage: {COMMAND} [--check]", file=sys.stderr)
        return 2
    found = differing()
    for path, text in found.items():
        if args:
            print(f"docs/{path} differs: run {COMMAND}")
            continue
        (DOCS / path).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / path).write_bytes(text)
        print(f"wrote docs/{path}")
    return 1 if args and found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
