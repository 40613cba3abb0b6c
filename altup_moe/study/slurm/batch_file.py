"""The batch file of a batch: `launch/slurm.sbatch` with the flags of the cluster, and one task for each row."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from altup_moe.launch.slurm import SlurmOptions
from altup_moe.launch.slurm import batch_file as slurm_file
from altup_moe.study.slurm.batches import Batch
from altup_moe.study.slurm.cluster import Cluster


def batch_file(batch: Batch, cluster: Cluster, root: Path, after: Sequence[str] = (), most: int | None = None) -> str:
    """The text that sbatch takes.

    Args:
        root: directory of the batch, absolute.
        after: tasks that must have succeeded before, as 12_3.
        most: tasks that run at a time; None is without limit.
    """
    limit = "" if most is None else f"%{most}"
    output = str(root).replace("%", "%%")  # as sbatch reads file names
    flags = [f"--array=0-{batch.tasks - 1}{limit}", f"--output={output}/out-%a.txt", *cluster.flags]
    if after:
        flags += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    options = SlurmOptions(
        partition=cluster.partition,
        nodes=batch.nodes,
        gpus_per_node=cluster.gpus_per_node,
        cpus_per_task=cluster.cpus_per_task or batch.ranks_per_node * batch.threads,
        time=cluster.time,
        job_name=batch.name,
        sbatch=shlex.join(flags),
    )
    variables = {"OWN_STEPS": "1", "ENDED": f"{shlex.quote(str(root))}/ended-$SLURM_ARRAY_TASK_ID"}
    command = [sys.executable, "-m", "altup_moe.study.slurm.job_main", os.fspath(root)]
    return slurm_file(options, command, cluster.setup, variables)
