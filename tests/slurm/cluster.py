"""A real SLURM with the nodes n0 and n1 (`tests.two_nodes`), and the jobs that tests give it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.processes import wait_until
from tests.two_nodes import NODES, TwoNodes, unavailable

ROOT = Path(__file__).parents[2]
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue", "scancel")
# One partition for all tests, and one whose jobs take its nodes away. KillWait: seconds to save after SIGTERM.
CONFIGURATION = """ClusterName=tests
SlurmctldHost=ctl
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket,cred_expire=5
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool-%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd-%n.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
JobRequeue=1
SlurmdTimeout=20
KillWait=30
MinJobAge=600
SlurmctldParameters=requeue_delay=1
SchedulerParameters=batch_sched_delay=1,sched_interval=5
NodeName=n[0-1] CPUs=2 RealMemory=4000
PartitionName=cpu Nodes=n[0-1] Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=n[0-1] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def reason() -> str | None:
    """Why there can be no SLURM here; None if there can."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"no SLURM: {', '.join(missing)} not found (Debian: slurmctld slurmd slurm-client munge)"
    return unavailable()


@dataclass(frozen=True)
class Cluster:
    """SLURM on two nodes. Numbers of jobs are text, as 7 or, of an array's task, 7_1."""

    nodes: TwoNodes

    @property
    def directory(self) -> Path:
        return self.nodes.directory

    def start(self) -> None:
        """Start the daemons and wait for both nodes."""
        directory = self.directory
        (directory / "slurm.conf").write_text(CONFIGURATION.format(dir=directory))
        (directory / "state").mkdir()
        (directory / "munge.key").write_bytes(os.urandom(128))
        (directory / "munge.key").chmod(0o400)
        files = [f"--{name}-file={directory}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self.nodes.run("/usr/sbin/munged", "--force", f"--socket={directory}/munge.socket", *files)
        self.run("/usr/sbin/slurmctld", "-f", str(directory / "slurm.conf"))
        for node in NODES:
            self.start_node(node)
        idle = ("sinfo", "--noheader", "--states=idle", "--format=%D", "--partition=cpu")
        wait_until(lambda: self.run(*idle, check=False).strip() == "2", "two nodes")

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        (self.directory / f"spool-{node}").mkdir(exist_ok=True)
        self.run("/usr/sbin/slurmd", "-f", str(self.directory / "slurm.conf"), node=node)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of commands: this interpreter, altup_moe from here, no other job's variables."""
        own = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))}
        binaries = f"{Path(sys.executable).parent}:{own['PATH']}:/usr/sbin"
        return own | {
            "PATH": binaries, "SLURM_CONF": str(self.directory / "slurm.conf"), "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **more,
        }  # fmt: skip

    def run(self, *argv: str, node: str | None = None, check: bool = True, **variables: str) -> str:
        """A command beside the nodes, or on one, to its end; what it prints."""
        return self.nodes.run(*argv, node=node, check=check, env=self.environment(**variables))

    def submit(self, command: list[str], *flags: str, **variables: str) -> str:
        """`altup-moe launch slurm`, from a directory without a checkout. Returns the job's number."""
        words = [sys.executable, "-m", "altup_moe.cli", "launch", "slurm", *flags, "--", *command]
        said = re.search(r"Submitted batch job (\d+)", self.run(*words, **variables))
        assert said is not None
        return said[1]

    def shown(self, job: str, key: str) -> str:
        """A field of `scontrol show job`."""
        found = re.search(rf"\b{key}=(\S+)", self.run("scontrol", "show", "job", job))
        assert found is not None
        return found[1]

    def state(self, job: str) -> str:
        return self.shown(job, "JobState")

    def restarts(self, job: str) -> int:
        """How often a job was put back into the queue."""
        return int(self.shown(job, "Restarts"))

    def exit_code(self, job: str) -> int:
        """The exit code of a job's batch script."""
        return int(self.shown(job, "ExitCode").partition(":")[0])

    def wait_for(self, job: str, *states: str, seconds: float = 200) -> str:
        """Wait until a job is in one of the states."""
        return wait_until(lambda: (found := self.state(job)) in states and found, f"job {job} {states}", seconds)

    def end_soon(self, job: str) -> None:
        """Set a job's time limit so that its warning (120 s before) is due, and its end is not."""
        hours, minutes, _ = self.shown(job, "RunTime").split(":")
        self.run("scontrol", "update", f"JobId={job}", f"TimeLimit={int(hours) * 60 + int(minutes) + 2}")

    def output(self, job: str) -> str:
        """What a job has printed."""
        file = self.directory / f"slurm-{job}.out"
        return file.read_text(errors="replace") if file.exists() else ""
