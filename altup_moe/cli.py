"""The command `altup-moe`: train, evaluate, generate, doctor, and the benchmarks (bench step, experts, train, ...).

A mistake of the user's is one line on stderr and exit code 2, found before torch is imported wherever it can be.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from altup_moe.bench.commands import BENCHES
from altup_moe.config import ConfigError, RunConfig, UserError
from altup_moe.config.checks import check_config, world_size_from_env
from altup_moe.config.command import Command
from altup_moe.config.data_checks import check_corpus, check_task_files, task_directories, task_names
from altup_moe.config.exit_codes import EXIT_USER_ERROR
from altup_moe.config.flags import check_utf8, parse, print_help
from altup_moe.config.keys import nearest_key
from altup_moe.config.load import load_config
from altup_moe.config.ranges import COUNT, NOT_NEGATIVE, Range
from altup_moe.config.run_directory import config_file
from altup_moe.doctor.options import DoctorOptions
from altup_moe.train.stop_signal import WARNING, StopSignal

TEMPERATURE = Range(1e-6, 1e30)
"""What logits can be divided by in fp32; 0 stands for the likeliest token."""
PROFILE = ["--log.profile_steps", "3"]
"""What --profile stands for."""
OWN_MISTAKE_SECONDS = 1.0
"""How long a rank other than 0 waits before it prints a mistake."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Loss, perplexity and bits per byte of a run's newest checkpoint; or with --tasks, how well it answers."""

    run_dir: Positional[Path]
    """Directory of a run (log.run_dir)."""
    corpus: str | None = None
    """python-docs, wikipedia-sample or the path prefix of prepared data; None is the run's own validation part."""
    samples: int | None = None
    """Samples to read at most; None reads all of a given corpus, and of the run's own validation part as many as
    train.eval_samples."""
    tasks: str | None = None
    """Tasks to answer instead, separated by commas: their validation splits, greedily generated."""
    limit: int | None = None
    """Examples of each task to answer, the first ones; None is all."""
    batch_size: int = 16
    """Examples answered at once."""
    task_files: tuple[str, ...] = ()
    """Local data of tasks, each TASK=DIRECTORY, as data.task_files; beside the run's own."""
    answers: Path | None = None
    """File to write a task's answers to as well, a JSON line each: task, answer, reference."""
    json: bool = False
    """Print one JSON object instead of text."""


@dataclass(frozen=True)
class GenerateOptions:
    """Continue a prompt with a run's newest checkpoint."""

    run_dir: Positional[Path]
    """Directory of a run (log.run_dir)."""
    prompt: str
    """Text to continue."""
    max_new_tokens: int = 64
    """Tokens to add at most; a line on standard error says so where fewer fit."""
    temperature: float = 0.8
    """Divides the logits, 1e-6 to 1e30; 0 always takes the likeliest token."""
    top_p: float = 0.95
    """Draw from the likeliest tokens that together have this probability."""
    seed: int = 0
    """Seed of the draws."""


def train(args: Sequence[str]) -> int:
    """Load and check a configuration file with its overrides, then train."""
    if not args or args[0].startswith("-"):
        raise UserError("train: name a configuration file first, as in altup-moe train configs/quickstart.yaml")
    # The one flag without a dot: what people look for.
    overrides = [part for arg in args[1:] for part in (PROFILE if arg == "--profile" else [arg])]
    # A warning of SLURM that comes before the first step is heeded after it; it must not end the process.
    with StopSignal((WARNING,)):
        config = load_config(args[0], overrides)
        check_config(config, world_size_from_env())
        from altup_moe.train import loop

        return loop.train(config)


def evaluate(args: Sequence[str]) -> int:
    """Parse and check the options, then evaluate."""
    o = parse(EvaluateOptions, args, positional="run_dir")
    _check_run_dir(o.run_dir)
    if o.answers is not None and o.tasks is None:
        raise ConfigError("answers", str(o.answers), "belongs to tasks; name some")
    if o.corpus is not None:
        check_corpus("corpus", o.corpus)
    if o.samples is not None:
        COUNT.check("samples", o.samples)
    if o.tasks is not None:
        return _evaluate_tasks(o, o.tasks)
    from altup_moe.inference.evaluate import evaluate_command

    return evaluate_command(run_dir=o.run_dir, corpus=o.corpus, samples=o.samples, as_json=o.json)


def _evaluate_tasks(o: EvaluateOptions, tasks: str) -> int:
    for key in ("corpus", "samples"):
        if getattr(o, key) is not None:
            raise ConfigError(key, getattr(o, key), "is of no use beside tasks; give one of the two")
    names = task_names("tasks", tasks)
    if o.limit is not None:
        COUNT.check("limit", o.limit)
    COUNT.check("batch_size", o.batch_size)
    check_task_files("task_files", o.task_files)
    if o.answers is not None and (o.answers.is_dir() or not o.answers.parent.is_dir()):
        raise ConfigError("answers", str(o.answers), "must name a file in a directory that exists")
    from altup_moe.inference.evaluate_tasks import evaluate_tasks_command

    return evaluate_tasks_command(
        run_dir=o.run_dir,
        tasks=names,
        limit=o.limit,
        files=task_directories(o.task_files),
        batch_size=o.batch_size,
        as_json=o.json,
        answers_file=o.answers,
    )


def generate(args: Sequence[str]) -> int:
    """Parse and check the options, then generate."""
    o = parse(GenerateOptions, args, positional="run_dir")
    _check_run_dir(o.run_dir)
    COUNT.check("max_new_tokens", o.max_new_tokens)
    NOT_NEGATIVE.check("temperature", o.temperature)
    if o.temperature != 0 and o.temperature not in TEMPERATURE:
        raise ConfigError("temperature", o.temperature, f"{TEMPERATURE}; 0 takes the likeliest token")
    Range(0, 1, open_low=True).check("top_p", o.top_p)
    Range(0, 2**63 - 1).check("seed", o.seed)
    from altup_moe.inference.generate import generate_command

    return generate_command(
        run_dir=o.run_dir,
        prompt=o.prompt,
        max_new_tokens=o.max_new_tokens,
        temperature=o.temperature,
        top_p=o.top_p,
        seed=o.seed,
    )


def doctor(args: Sequence[str]) -> int:
    """Parse and check the options, then look at this machine."""
    o = parse(DoctorOptions, args)
    Range(1, 65535).check("port", o.port)
    from altup_moe.doctor import check

    return check.run_doctor(o)


def train_help(args: Sequence[str]) -> None:
    """Every field of a run; defaults are the file's where one is named."""
    named = bool(args) and not args[0].startswith("-")
    print_help(RunConfig, "altup-moe train CONFIG", load_config(args[0] if named else None))


COMMANDS = {
    "train": Command("CONFIG [--section.key VALUE ...]", "train a configuration file", train, train_help),
    "evaluate": Command(
        "RUN_DIR [options]",
        "loss and bits per byte of a run on held-out text, or its answers to tasks",
        evaluate,
        lambda args: print_help(EvaluateOptions, "altup-moe evaluate"),
    ),
    "generate": Command(
        "RUN_DIR --prompt TEXT [options]",
        "continue a text with a trained run",
        generate,
        lambda args: print_help(GenerateOptions, "altup-moe generate"),
    ),
    "doctor": Command(
        "[options]",
        "could a run start here: versions, devices, network, disk, two ranks",
        doctor,
        lambda args: print_help(DoctorOptions, "altup-moe doctor"),
    ),
    **BENCHES,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (without the program's name; None takes the process's) and return its exit code.

    Under a launcher all ranks mostly find the same mistake. Rank 0 prints it; the others only what is theirs.
    """
    _quiet_libraries()
    try:
        return _dispatch(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        print(f"altup-moe: error: {_whose()}{' '.join(str(error).splitlines())}", file=sys.stderr, flush=True)
        return EXIT_USER_ERROR


def _whose() -> str:
    """Names this rank, unless it is rank 0, which speaks at once.

    The others wait first: if rank 0, or the first rank of this node, has the same mistake, its launcher ends them
    meanwhile, and the line stands there once. A mistake that is a rank's own is printed by it.
    """
    rank = os.environ.get("RANK", "0")
    if rank == "0":
        return ""
    time.sleep(OWN_MISTAKE_SECONDS * (1 if os.environ.get("LOCAL_RANK") == "0" else 2))
    return f"on rank {rank} ({platform.node()}): "


def _quiet_libraries() -> None:
    """Megatron-Core announces at import what it falls back to without Transformer Engine and apex: expected here."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"megatron\.")
    logging.getLogger("megatron").setLevel(logging.ERROR)


def _dispatch(argv: list[str]) -> int:
    check_utf8(argv)
    match argv:
        case ["-h" | "--help"] | ["bench", "-h" | "--help"]:
            print(_overview())
            return 0
        case ["--version"]:
            print(f"altup-moe {_version()}")
            return 0
        case ["bench", *_]:
            name, args = " ".join(argv[:2]), argv[2:]
        case [name, *args]:
            pass
        case _:
            raise UserError(f"name a command: {', '.join(COMMANDS)}; altup-moe --help says more")
    if name not in COMMANDS:
        raise UserError(f"{name}: unknown command; nearest is {nearest_key(name, COMMANDS)}")
    if "-h" in args or "--help" in args:
        COMMANDS[name].show_help(args)
        return 0
    return COMMANDS[name].run(args)


def _overview() -> str:
    rows = [(f"{name} {command.usage}", command.summary) for name, command in COMMANDS.items()]
    width = max(len(usage) for usage, _ in rows)
    lines = [f"  altup-moe {usage:<{width}}  {summary}" for usage, summary in rows]
    return "\n".join(
        [
            "Train Transformers with an AltUp residual stream and sparse experts.",
            "",
            *lines,
            "",
            "altup-moe COMMAND --help says what it takes; altup-moe --version prints the version.",
        ]
    )


def _version() -> str:
    try:
        return importlib.metadata.version("altup-moe")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _check_run_dir(run_dir: Path) -> None:
    if not config_file(run_dir).is_file():
        raise ConfigError("run_dir", str(run_dir), "holds no config.yaml; the log.run_dir of a run would fit")


if __name__ == "__main__":
    sys.exit(main())
