"""`cluster` of a study's file: the nodes that launcher slurm asks for. Nothing in it changes what a row learns.

launcher: slurm
ranks: 4
cluster:
  ranks_per_node: 2                # so 2 nodes
  partition: gpu
  gpus_per_node: 2
  cpus_per_task: 16
  time: "12:00:00"
  account: mine
  setup: [module load cuda]
  sbatch: [--constraint=a100]
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from altup_moe.config import ConfigError
from altup_moe.config.ranges import Range
from altup_moe.study.read_record import record

_MOST = 100_000
_RANGES = {
    "ranks_per_node": Range(1, 1024),
    "gpus_per_node": Range(1, _MOST),
    "cpus_per_task": Range(1, _MOST),
    "poll_seconds": Range(1, 3600),
}
_TIME = re.compile(r"[0-9]+(-[0-9]+(:[0-9]+){0,2}|(:[0-9]+){0,2})")
_THE_STUDY_S = ("array", "dependency", "job-name", "nodes", "ntasks", "ntasks-per-node", "output", "error", "open-mode")
_DECIDED = {
    **dict.fromkeys((f"--{name}" for name in (*_THE_STUDY_S, "requeue", "no-requeue", "wrap")), "the study"),
    **dict.fromkeys(("-a", "-d", "-J", "-N", "-n", "-o", "-e"), "the study"),
    "--partition": "cluster.partition", "-p": "cluster.partition", "--gpus-per-node": "cluster.gpus_per_node",
    "--cpus-per-task": "cluster.cpus_per_task", "-c": "cluster.cpus_per_task", "--time": "cluster.time",
    "-t": "cluster.time", "--account": "cluster.account", "-A": "cluster.account",
    "--exclusive": "cluster.exclusive",
}  # fmt: skip
"""Flags of sbatch -> who decides them."""


@dataclass(frozen=True)
class Cluster:
    """What the jobs of a study ask SLURM for. None is the cluster's own default, if nothing else is said."""

    ranks_per_node: int | None = None
    """Ranks on each node: its GPUs, or 1. A row of fewer ranks takes one node."""
    partition: str | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    """CPU cores of a node; None is as many as its ranks have threads."""
    time: str | None = None
    """Time limit of a job, as in 12:00:00. A row that needs longer saves and goes on in the next one."""
    account: str | None = None
    setup: tuple[str, ...] = ()
    """Lines of bash that each job begins with, on its first node."""
    sbatch: tuple[str, ...] = ()
    """More flags of sbatch, each as --name=value."""
    exclusive: bool = True
    """Nodes are not shared with other jobs, so that times are a row's own."""
    poll_seconds: float = 10.0
    """How often squeue is asked."""

    def place(self, ranks: int) -> tuple[int, int]:
        """(nodes, ranks on each) of a row. Raises ConfigError if nodes cannot be filled evenly."""
        most = self.ranks_per_node or self.gpus_per_node or 1
        if ranks <= most:
            return 1, ranks
        if ranks % most:
            key = "ranks_per_node" if self.ranks_per_node else "gpus_per_node"
            near = max(each for each in range(1, most) if ranks % each == 0)
            fits = f"must divide the ranks of a row ({ranks}); cluster.ranks_per_node: {near} would fit"
            raise ConfigError(f"cluster.{key}", most, fits)
        return ranks // most, most

    @property
    def flags(self) -> list[str]:
        """Flags of sbatch beside those that `altup-moe launch slurm` has of its own."""
        account = [f"--account={self.account}"] if self.account else []
        return [*account, *(["--exclusive"] if self.exclusive else []), *self.sbatch]


def read_cluster(content: object) -> Cluster:
    """The section as a record; None is an empty one.

    Raises:
        ConfigError: a key or value that does not fit, by its dotted key.
    """
    cluster: Cluster = record(Cluster, {} if content is None else content, "cluster.")
    for key, allowed in _RANGES.items():
        if (value := getattr(cluster, key)) is not None:
            allowed.check(f"cluster.{key}", value)
    for key in ("partition", "account"):
        value = getattr(cluster, key)
        if value is not None and not re.fullmatch(r"[^\s'\"]+", value):
            raise ConfigError(f"cluster.{key}", value, "a name without spaces would fit")
    if cluster.time is not None and not _TIME.fullmatch(cluster.time):
        fits = "a time as sbatch takes it would fit, in quotes: '12:00:00', '2-12' (days-hours), '90' (minutes)"
        raise ConfigError("cluster.time", cluster.time, fits)
    for flag in cluster.sbatch:
        _check_flag(flag)
    return cluster


def _check_flag(flag: str) -> None:
    name = flag.partition("=")[0]
    # Of a short flag the value may stand right behind it.
    decided = _DECIDED.get(name if name.startswith("--") else name[:2])
    if decided is not None:
        raise ConfigError("cluster.sbatch", flag, f"{decided} decides it")
    if not re.fullmatch(r"--[a-z][a-z-]*(=[^\n]*)?", flag):
        raise ConfigError("cluster.sbatch", flag, "flags of sbatch in the form --name=value would fit")
