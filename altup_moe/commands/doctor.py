"""`altup-moe doctor`: could a run start on this machine?"""

from __future__ import annotations

from collections.abc import Sequence

from altup_moe.config.flags import parse, print_help
from altup_moe.config.ranges import Range
from altup_moe.doctor.options import DoctorOptions


def main(args: Sequence[str]) -> int:
    """Run the command's words and return the exit code."""
    if "-h" in args or "--help" in args:
        print_help(DoctorOptions, "altup-moe doctor")
        return 0
    return doctor(args)


def doctor(args: Sequence[str]) -> int:
    """Parse and check the options, then look at this machine."""
    o = parse(DoctorOptions, args)
    Range(1, 65535).check("port", o.port)
    from altup_moe.doctor import check

    return check.run_doctor(o)
