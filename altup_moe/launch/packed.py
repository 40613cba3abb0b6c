"""Encode a command as one word that no shell interprets. Run as a script for a rank, this module starts the command.

DeepSpeed's pdsh launcher joins arguments into a line for remote shells and quotes only those with a space
(`multinode_runner.py`, 0.19.8). The shell of every node would interpret a `$(...)`, a quote or a newline.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path


def pack(command: Sequence[str]) -> str:
    """A command as one word of letters, digits, `-`, `_` and `=`. It never starts with a dash."""
    return base64.urlsafe_b64encode(json.dumps(list(command)).encode()).decode()


def unpack(word: str) -> list[str]:
    """The inverse of `pack`."""
    return [str(part) for part in json.loads(base64.urlsafe_b64decode(word))]


def main(word: str, token: str | None = None) -> int:
    """Complete the rank's environment and run the command. Returns its exit code; without a token this becomes it.

    Args:
        token: word of one launch, by which its ranks are found (`rank_parent.tell`). Standard input then ends with the
            launcher.
    """
    from altup_moe.launch.common import find_program, set_defaults

    command = unpack(word)
    env = dict(os.environ)
    local = int(env.get("LOCAL_SIZE", "1"))
    nodes = 1 if local == int(env.get("WORLD_SIZE", "1")) else 2
    warnings = set_defaults(env, env.get("MASTER_ADDR", "localhost"), nodes, local)
    for warning in warnings if env.get("LOCAL_RANK", "0") == "0" else ():
        print(f"altup-moe launch deepspeed: warning: {warning}", file=sys.stderr)
    program = find_program(command[0])
    if program is None:
        print(f"altup-moe: error: command {command[0]!r}: not found on this node", file=sys.stderr)
        return 2
    if token is None:
        os.execvpe(program, [program, *command[1:]], env)
    from altup_moe.launch.rank_parent import RankParent

    return RankParent([program, *command[1:]], env).run()


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the repository's root instead of altup_moe/launch/
    if sys.argv[1] == "--tell":
        from altup_moe.launch.rank_parent import tell

        sys.exit(0 if tell(sys.argv[3], int(sys.argv[2]), Path(__file__).name) else 3)
    sys.exit(main(*sys.argv[1:]))
