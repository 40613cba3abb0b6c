"""`altup-moe launch torchrun|deepspeed|slurm|netlab ... -- COMMAND`: start the ranks of a command."""

from __future__ import annotations

from altup_moe.config.command import Command, Group
from altup_moe.launch import deepspeed, netlab, slurm, torchrun

LAUNCH = Group(
    "launch",
    """Start the ranks of a command: flags stand before `--`, the command after it. The exit code is the ranks' own (2:
    a mistake; 75: stopped by a signal and saved, the same command goes on).""",
    {
        "torchrun": Command(
            "launch torchrun",
            "[options] -- COMMAND ...",
            torchrun.EXAMPLES,
            torchrun.TorchrunOptions,
            torchrun.launch,
            launcher=True,
            more="""Without --node-rank, and with --max-restarts, the nodes number themselves when they have met. Exit
            codes are the ranks' own: 0, 2 (a mistake), 75 (stopped by a signal and saved: the same command goes on),
            76 (diverged), 77 (a rank hung). The rank that failed first is shown whole, the others in a line each.
            SIGTERM, SIGINT, SIGHUP and SIGUSR1 reach the ranks, SIGUSR1 as SIGTERM. If the launcher is killed the ranks
            save and end. Variables of the environment (in parentheses) are the flags' defaults.""",
        ),
        "deepspeed": Command(
            "launch deepspeed",
            "[options] -- COMMAND ...",
            deepspeed.EXAMPLES,
            deepspeed.DeepspeedOptions,
            deepspeed.launch,
            launcher=True,
            more="""A hostfile has lines `node0 slots=8`. Exit codes are the ranks' own (0, 2, 75), and SIGTERM, SIGINT
            and SIGUSR1 let them save; by pdsh DeepSpeed itself stops the ranks without waiting, and codes of other
            nodes are pdsh's.""",
        ),
        "slurm": Command(
            "launch slurm", "[options] -- COMMAND ...", slurm.EXAMPLES, slurm.SlurmOptions, slurm.launch, launcher=True
        ),
        "netlab": Command(
            "launch netlab",
            "[options] -- COMMAND ...",
            netlab.EXAMPLES,
            netlab.NetlabOptions,
            netlab.launch,
            launcher=True,
        ),
    },
)
main = LAUNCH.main
