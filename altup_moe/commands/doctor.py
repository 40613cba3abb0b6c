"""`altup-moe doctor`: could a run start on this machine?"""

from __future__ import annotations

from altup_moe.config.command import Command
from altup_moe.config.ranges import Range
from altup_moe.doctor.options import DoctorOptions


def doctor(o: DoctorOptions) -> int:
    """Check the options, then look at this machine."""
    Range(1, 65535).check("port", o.port)
    from altup_moe.doctor import check

    return check.run_doctor(o)


DOCTOR = Command("doctor", "[options]", ["altup-moe doctor --run-dir /scratch/runs"], DoctorOptions, doctor)
main = DOCTOR.main
