"""`altup-moe launch slurm`: a batch file of SLURM with its flags and a command in it, printed or submitted."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from altup_moe.launch.common import LaunchError, need_command, whole_number_within

NAME = "altup-moe launch slurm"
EXAMPLES = (
    f"{NAME} --print --nodes 2 --gpus-per-node 8 -- altup-moe train altup_k4_gpu > run.sbatch",
    f"{NAME} --partition gpu --nodes 2 --gpus-per-node 8 --cpus-per-task 64 -- altup-moe train ...   (submits)",
)
SBATCH = Path(__file__).with_name("slurm.sbatch")
"""The batch file without a command; `sbatch [flags] slurm.sbatch COMMAND` takes one as it is."""
FIRST, PROLOGUE = "#!/usr/bin/env bash\n", "set -euo pipefail\n"
"""Lines of the batch file after which its flags and the command are put."""
PROGRAMS = "for program in srun scontrol squeue; do\n"
"""The line before which a user's own lines are put: they may bring these programs into PATH."""


@dataclass(frozen=True)
class SlurmOptions:
    """Submit a run to SLURM with sbatch, or print the batch file. A job that is preempted or runs out of time saves its
    run, and is put into the queue again to go on.
    """

    print: bool = False
    """Print the batch file and submit nothing."""
    partition: str | None = None
    """Partition (queue) of the cluster."""
    nodes: int = 1
    """Number of nodes."""
    gpus_per_node: int | None = None
    """GPUs of a node; None asks for none."""
    cpus_per_task: int | None = None
    """CPU cores of a node; None is the cluster's default."""
    time: str | None = None
    """Time limit, as in 12:00:00; None is the partition's."""
    job_name: str = "altup-moe"
    """Name of the job."""
    ranks_per_node: int | None = None
    """Ranks on each node; None is its GPUs, or 1."""
    sbatch: str = ""
    """More flags of sbatch in one word, as in --sbatch='--account=mine --qos=high'."""


def launch(options: SlurmOptions, command: Sequence[str]) -> int:
    """Print or submit the batch file. Returns 0, or sbatch's exit code.

    Raises:
        LaunchError: an option does not fit, there is no command to submit, or no sbatch.
    """
    text = batch_file(options, command)
    if options.print:
        print(text, end="")
        return 0
    need_command(command, EXAMPLES[0])
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise LaunchError("sbatch: not found; on a login node of SLURM it is there, or write the file with --print")
    with tempfile.TemporaryDirectory(prefix="altup-moe-") as directory:
        file = Path(directory, "run.sbatch")  # sbatch takes a copy
        file.write_text(text, encoding="utf-8")
        return subprocess.run([sbatch, str(file)], check=False).returncode


def batch_file(
    options: SlurmOptions,
    command: Sequence[str],
    setup: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> str:
    """The text of `slurm.sbatch` with the flags as its #SBATCH lines and the command as its default words.

    Args:
        setup: lines of bash that run first, on the first node, as `module load cuda`; one that fails ends the job.
        variables: of the batch file, by name. Their values are words of bash.
    Raises:
        LaunchError: an option does not fit.
    """
    numbers = {
        "--nodes": options.nodes,
        "--gpus-per-node": options.gpus_per_node,
        "--cpus-per-task": options.cpus_per_task,
    }
    for name, number in {**numbers, "--ranks-per-node": options.ranks_per_node}.items():
        if number is not None:
            whole_number_within(name, number, 1, 100_000)
    given = {"--job-name": options.job_name, **numbers, "--partition": options.partition, "--time": options.time}
    try:
        more = shlex.split(options.sbatch)
    except ValueError as error:
        raise LaunchError(
            f"--sbatch {options.sbatch!r}: {error}; flags as one types them for sbatch would fit"
        ) from None
    flags = [*(f"{name}={value}" for name, value in given.items() if value is not None), *more]
    for flag in flags:
        if "\n" in flag or not flag.startswith("-"):
            raise LaunchError(f"--sbatch {flag!r}: flags of sbatch in the form --name=value would fit")
    prologue = f"(($#)) || set -- {shlex.join(command)}\n" if command else ""
    if options.ranks_per_node is not None:
        prologue += f"export RANKS_PER_NODE=${{RANKS_PER_NODE:-{options.ranks_per_node}}}\n"
    prologue += "".join(f"export {name}={value}\n" for name, value in (variables or {}).items())
    text = SBATCH.read_text(encoding="utf-8")
    names = {flag.partition("=")[0] for flag in flags}
    kept = [line for line in text.splitlines(keepends=True) if not _sets(line, names)]
    text = "".join(kept)
    text = text.replace(FIRST, FIRST + "".join(f"#SBATCH {shlex.quote(flag)}\n" for flag in flags), 1)
    if setup:
        # Scripts that such lines call read variables that are not set.
        text = text.replace(PROGRAMS, "\n".join(["set +u", *setup, "set -u", "", PROGRAMS]), 1)
    return text.replace(PROLOGUE, PROLOGUE + prologue, 1)


def _sets(line: str, names: set[str]) -> bool:
    """Whether a line of the batch file sets one of these flags."""
    words = line.split()
    return words[:1] == ["#SBATCH"] and words[1].partition("=")[0] in names
