"""The faults that a run meets, and what it promises of each. Tests with the mark `fault(KEY)` inject them.

Such a test takes the fixture `saw` (tests/conftest.py) and tells what it saw: `saw(seconds, code, text)`. The fixture
compares the code with the row's. `python -m tests.faults` runs these tests and writes docs/results/faults.md.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A row of the table.

    Attributes:
        key: name in the mark of its test, and in `saw`.
        fault: what goes wrong, in the user's words.
        injected: how a test makes it happen.
        promise: what the run does then.
        codes: exit codes that keep the promise, of the launcher or, where there is none, of the ranks that live on.
    """

    key: str
    fault: str
    injected: str
    promise: str
    codes: tuple[int, ...]


FAULTS = (
    Fault(
        "kill-rank",
        "A rank is killed",
        "kill -9 of one rank under `launch torchrun`",
        "The launcher names the rank and ends the others. The same command goes on to the same losses, bit for bit.",
        (137,),
    ),
    Fault(
        "kill-in-save",
        "A rank is killed while it saves",
        "kill -9 while a `.partial` directory exists",
        "The last complete checkpoint stays whole, and the same command goes on from it, bit for bit.",
        (137,),
    ),
    Fault(
        "kill-launcher",
        "The launcher is killed",
        "kill -9 of `launch torchrun`",
        "Its ranks save and end; none trains on. The same command goes on.",
        (137,),
    ),
    Fault(
        "kill-node",
        "A node dies",
        "kill -9 of all processes of one node of a netlab",
        "The other nodes end and say which node was first. The same command goes on.",
        (137,),
    ),
    Fault(
        "stop-rank",
        "A rank stands still",
        "SIGSTOP of one rank",
        "Within `train.hang_timeout` one report names the rank and the operation; all ranks end.",
        (77,),
    ),
    Fault(
        "skipped-collective",
        "A rank skips a collective",
        "one rank leaves out one all-reduce",
        "The report names the first operation that differs, and the ranks on either side.",
        (77,),
    ),
    Fault(
        "link-down",
        "A link goes down",
        "`ip link set down` of one node of a netlab",
        "The report names the operation and the ranks that do not answer; all ranks end.",
        (77,),
    ),
    Fault(
        "python-deadlock",
        "Python code of a rank waits for ever",
        "one rank takes a lock that is never released",
        "The report has the Python stack of that rank; all ranks end.",
        (77,),
    ),
    Fault(
        "config-differs",
        "Ranks have different configurations",
        "another `optim.learning_rate` on one rank",
        "The key and both values are named before the first step; no rank trains.",
        (2,),
    ),
    Fault(
        "code-differs",
        "Ranks have different code or libraries",
        "another hash of a package file on one rank",
        "The file or library is named before the first step; no rank trains.",
        (2,),
    ),
    Fault(
        "data-differs",
        "Ranks read different data",
        "another token file on one rank",
        "The fingerprint is named before the first step; no rank trains.",
        (2,),
    ),
    Fault(
        "nan-loss",
        "The loss is NaN from some step on",
        "the loss mask of all samples from some step on is NaN",
        "`train.max_skipped` steps are skipped, then the run ends; a checkpoint from before the first of them stays.",
        (76,),
    ),
    Fault(
        "overflow",
        "A gradient overflows",
        "a gradient is multiplied by 1e25 on one rank in one step",
        "The step is skipped on all ranks; weights and moments stay as they were and finite.",
        (0,),
    ),
    Fault(
        "loss-spike",
        "The loss jumps",
        "the labels of one step are a rare token",
        "The spike guard skips the step, stops, or goes back to a good checkpoint, as configured.",
        (0, 76),
    ),
    Fault(
        "token-range",
        "A token id does not exist in the vocabulary",
        "one id in a shard is set to a number above `model.vocab_size`",
        "Shard, offset and id are named in one line.",
        (2,),
    ),
    Fault(
        "full-disk-logging",
        "The disk fills up while metrics are written",
        "a tmpfs is filled to its last byte for some steps",
        "One warning; training goes on, and the missing lines are written once there is room.",
        (0,),
    ),
    Fault(
        "full-disk-saving",
        "The disk fills up while a checkpoint is written",
        "files of one rank fail with ENOSPC",
        "All ranks agree that the save failed; the last good checkpoint stays; training goes on.",
        (0,),
    ),
    Fault(
        "read-only-directory",
        "The run directory cannot be written",
        "a run directory without write permission, or on a read-only file system",
        "One line names the path; nothing is started.",
        (2,),
    ),
    Fault(
        "damaged-checkpoint",
        "A checkpoint is damaged",
        "one byte of a file is flipped",
        "The file is named; nothing is loaded. `checkpoint.fallback true` takes the newest whole one.",
        (2,),
    ),
    Fault(
        "second-run",
        "A second run starts in the same directory",
        "the same command twice at once",
        "The second is refused in one line; the first trains on.",
        (2,),
    ),
    Fault(
        "stop-signals",
        "The machine asks the run to stop",
        "SIGTERM, SIGHUP and SIGUSR1 to the launcher",
        "The run finishes its step, saves and ends. The same command goes on.",
        (75,),
    ),
    Fault(
        "missing-peer",
        "A node never arrives",
        "one of two nodes is not started",
        "One line after `--rdzv-timeout` says where it waited and for how many.",
        (1, 2),
    ),
    Fault(
        "restart-storm",
        "Every restart fails at the same step",
        "a rank that dies at the same step each time, under `--max-restarts`",
        "After the same error twice at the same step no further restart is made.",
        (1, 137),
    ),
    Fault(
        "slow-rank",
        "One rank is slow",
        "a cgroup takes CPU time from one node of a netlab",
        "The console and `metrics.jsonl` name the rank and its score; training goes on until it is told to stop.",
        (75,),
    ),
    Fault(
        "slow-link",
        "One link is slow",
        "`tc tbf` on one node of a netlab",
        "The console and `metrics.jsonl` name the link; training goes on until it is told to stop.",
        (75,),
    ),
    Fault(
        "slurm-time-limit",
        "A SLURM job reaches its time limit",
        "a job with a short limit on a two-node SLURM",
        "The run saves, goes back into the queue and ends where it would have.",
        (0,),
    ),
    Fault(
        "slurm-preemption",
        "A SLURM job is preempted",
        "a job of a higher partition on a two-node SLURM",
        "The run saves, is queued again and ends where it would have.",
        (0,),
    ),
)
"""In the order of the page."""

BY_KEY = {one.key: one for one in FAULTS}
