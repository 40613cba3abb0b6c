"""`altup-moe reshard SRC DST`: rewrite a checkpoint, so that every rank of another layout has files of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from altup_moe.checkpoint.digest import DigestComparison, compare_digests
from altup_moe.checkpoint.layout import describe_layout
from altup_moe.checkpoint.progress import Progress, peak_memory_bytes
from altup_moe.checkpoint.reshard import Resharding, plan_resharding, write_resharded
from altup_moe.checkpoint.sidecar_files import copy_sidecar_files, sidecar_files
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import find_checkpoint
from altup_moe.config import ConfigError, DataConfig, ParallelConfig, RunConfig, UserError
from altup_moe.config.checks import check_config, data_parallel_size, divisors, smallest_world
from altup_moe.config.command import Command
from altup_moe.config.expected_run import check_source
from altup_moe.config.load import save_config
from altup_moe.config.run_directory import checkpoints_dir, config_file
from altup_moe.config.start_advice import replace_start
from altup_moe.data.files import new_directory

MIN_FREE_BYTES = 1 << 26
"""Free disk space in bytes required beyond the tensors: for headers, the manifest and small files."""


@dataclass(frozen=True)
class ReshardOptions:
    """Rewrite a checkpoint for another layout; sizes that are not given are 1.

    Exit code 0: done. 1: --verify found a difference, DESTINATION was removed. 2: nothing was done, one line says why.
    """

    source: Path
    """Run directory (its latest checkpoint), or directory of a checkpoint."""
    destination: Path
    """Run directory to make."""
    tensor: int = 1
    """Tensor-parallel ranks."""
    pipeline: int = 1
    """Pipeline stages."""
    virtual_pipeline: int = 1
    """Model chunks a pipeline rank holds."""
    first_stage_layers: int | None = None
    """Layers on the first pipeline rank; None splits evenly."""
    last_stage_layers: int | None = None
    """Layers on the last pipeline rank; None splits evenly."""
    expert: int = 1
    """Expert-parallel ranks."""
    expert_tensor: int = 1
    """Tensor-parallel ranks inside one expert."""
    context: int = 1
    """Context-parallel ranks."""
    data: int | None = None
    """Data-parallel ranks; None takes the fewest that the other sizes allow."""
    distributed_optimizer: bool = False
    """Shard optimizer state over data-parallel ranks."""
    micro_batch_size: int | None = None
    """train.micro_batch_size of the new run, where the old one does not fit; None keeps it."""
    dry_run: bool = False
    """Print the plan, write nothing."""
    verify: bool = False
    """Afterwards hash every global tensor of both and compare."""
    verify_source: bool = True
    """First compare the source's files with the hashes they were saved with."""
    json: bool = False
    """Print one JSON object instead of text (with --verify, every tensor's hash)."""


def target_config(options: ReshardOptions, source: RunConfig) -> tuple[RunConfig, int]:
    """The source's run configuration under the requested layout, and its world size, both checked.

    Raises:
        ConfigError: values do not fit; its key is the flag to change, if there is one.
    """
    known = {field.name for field in fields(ParallelConfig)}
    sizes = {name: value for name, value in asdict(options).items() if name in known}
    parallel = replace(source.parallel, **sizes)
    exact = parallel.tensor * parallel.pipeline * parallel.context * (parallel.data or 1)
    world_size = smallest_world(parallel) if parallel.data is None else exact
    micro = options.micro_batch_size if options.micro_batch_size is not None else source.train.micro_batch_size
    config = replace(
        source,
        parallel=parallel,
        train=replace(source.train, micro_batch_size=micro),
        log=replace(source.log, run_dir=str(options.destination)),
    )
    try:
        # Data files may only exist on the machine that trains, so they are not checked here.
        check_config(replace(config, data=DataConfig()), world_size)
    except ConfigError as error:
        raise _flagged(error, config, world_size) from None
    return config, world_size


def _flagged(error: ConfigError, config: RunConfig, world_size: int) -> ConfigError:
    """The same error with this command's flags instead of dotted keys."""
    fits = re.sub(r"parallel\.(\w+)", lambda found: _flag(found[1]), error.fits)
    fits = replace_start(fits, lambda ranks: f"{ranks} ranks would fit")
    section, _, name = error.key.partition(".")
    if section == "parallel":
        return ConfigError(_flag(name), error.value, fits)
    if error.key == "train.micro_batch_size":
        return ConfigError("--micro-batch-size", error.value, fits)
    if error.key == "train.global_batch_size":
        fits = f"{error.key}={error.value!r}: {fits}"
        if "virtual" in error.fits:
            return ConfigError("--virtual-pipeline", config.parallel.virtual_pipeline, fits)
        data, batch = data_parallel_size(config, world_size), config.train.global_batch_size
        sizes = [str(n) for n in divisors(batch) if batch % (n * config.train.micro_batch_size) == 0]
        fitting = [f"--data {', '.join(sizes)}"] if sizes else []
        # Another micro-batch helps only where the data-parallel ranks divide the batch.
        fitting += [] if batch % data else [f"--micro-batch-size {batch // data}"]
        return ConfigError("--data", data, f"{fits.rpartition('; ')[0]}; {' or '.join(fitting)} would fit")
    return error


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_destination(destination: Path, needed: int) -> None:
    """Raise UserError if the destination exists, or its disk has fewer than `needed` bytes free."""
    if destination.exists() or destination.is_symlink():
        raise UserError(f"{destination}: exists; name a directory that does not")
    above = next(path for path in destination.absolute().parents if path.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise UserError(f"{destination}: nothing can be written into {above}")
    free = shutil.disk_usage(above).free
    if free < needed:
        raise UserError(
            f"{destination}: {needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free; name another disk"
        )


def plan_record(source: Checkpoint, resharding: Resharding, options: ReshardOptions) -> dict[str, Any]:
    """The plan as a JSON-serialisable record."""
    manifest, held = source.manifest, resharding.rank_bytes
    return {
        "source": str(source.directory),
        "destination": str(options.destination),
        "step": manifest.step,
        "source_layout": describe_layout(source.config.parallel, manifest.world_size),
        "target_layout": describe_layout(resharding.config.parallel, resharding.world_size),
        "world_size": resharding.world_size,
        "tensors": len(resharding.specs),
        "bytes": sum(held),
        "largest_tensor_bytes": resharding.largest_bytes,
        "files": resharding.file_bytes,
        "rank_bytes": held,
        "left_out": list(resharding.left_out),
        "copied": sidecar_files(source.directory),
    }


def _print_plan(plan: dict[str, Any]) -> None:
    held, left = plan["rank_bytes"], len(plan["left_out"])
    print(f"source    {plan['source']}: step {plan['step']:,}, saved by {plan['source_layout']}")
    print(f"target    {plan['destination']}: {plan['target_layout']}")
    print(
        f"tensors   {plan['tensors']:,}, {plan['bytes'] / 1e6:,.1f} MB, "
        f"the largest {plan['largest_tensor_bytes'] / 1e6:,.1f} MB"
    )
    print(f"files     {len(plan['files'])}, {min(held) / 1e6:,.1f} to {max(held) / 1e6:,.1f} MB a rank")
    if left:
        print(f"left out  {left} state{'s' * (left > 1)} of random streams (rng/), which only the old layout can use")
    print(f"copied    {', '.join([*plan['copied'], 'config.yaml (with the new layout)'])}", flush=True)


def run_reshard(options: ReshardOptions) -> int:
    """Reshard a checkpoint. Returns the exit code: 0, or 1 if --verify found a difference."""
    check_source(options.source, "reshard", (str(options.destination),), "source")
    with Checkpoint(find_checkpoint(options.source)) as source:
        config, world_size = target_config(options, source.config)
        resharding = plan_resharding(source, config, world_size)
        plan = plan_record(source, resharding, options)
        check_destination(options.destination, plan["bytes"] + MIN_FREE_BYTES)
        if not options.json:
            _print_plan(plan)
        if options.verify_source:
            source.verify()
        if options.dry_run:
            if options.json:
                print(json.dumps(plan))
            return 0
        started = time.monotonic()
        try:
            with new_directory(options.destination) as new:
                _write(source, resharding, new)
                seconds = time.monotonic() - started
                digests = _compare_digests(source, new, plan["bytes"]) if options.verify else None
                if digests and digests.different:
                    raise _Differs
                check_destination(options.destination, 0)
        except _Differs:
            pass
    return _report(plan, digests, seconds, options)


class _Differs(Exception):
    """--verify found a difference, so the destination is removed."""


def _write(source: Checkpoint, resharding: Resharding, new: Path) -> None:
    progress = Progress("written", sum(resharding.rank_bytes))
    write_resharded(source, resharding, checkpoints_dir(new), progress.add)
    copy_sidecar_files(source.directory, source.manifest.step, new)
    save_config(resharding.config, config_file(new))


def _compare_digests(source: Checkpoint, new: Path, total: int) -> DigestComparison:
    progress = Progress("hashed", total)
    with Checkpoint(find_checkpoint(new)) as target:
        return compare_digests(source, target, on_bytes=progress.add)


def _report(plan: dict[str, Any], digests: DigestComparison | None, seconds: float, options: ReshardOptions) -> int:
    peak = peak_memory_bytes()
    if options.json:
        known: dict[str, Any] = {**plan, "seconds": seconds, "peak_memory_bytes": peak}
        if digests:
            known |= {"sha256": digests.target, "combined_sha256": digests.combined, "different": digests.different}
        print(json.dumps(known))
    if digests and digests.different:
        more = f" (and {len(digests.different) - 1} more)" if len(digests.different) > 1 else ""
        print(
            f"altup-moe: error: {digests.different[0]}{more} differs; {options.destination} was removed",
            file=sys.stderr,
        )
        return 1
    if not options.json:
        rate = plan["bytes"] / 1e6 / seconds
        print(f"written   {options.destination} in {seconds:.1f} s, {rate:,.0f} MB/s; peak memory {peak / 1e6:,.0f} MB")
        if digests:
            print(f"verified  {len(digests.target):,} tensors are the same in both, SHA-256 of all {digests.combined}")
    return 0


def reshard(options: ReshardOptions) -> int:
    """Reshard a checkpoint; a signal or an error leaves nothing behind. Returns the exit code."""
    # Turn signals into an exception, so that incomplete files are removed.
    heard = [n for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, frame: sys.exit(128 + number)) for number in heard}
    try:
        return run_reshard(options)
    except OSError as error:
        raise UserError(f"{error.filename or 'the destination'}: {error.strerror}") from None
    except KeyboardInterrupt:
        print("altup-moe: stopped, nothing was kept", file=sys.stderr)
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


RESHARD = Command(
    "reshard",
    "SRC DST [options]",
    ["altup-moe reshard runs/a runs/b --tensor 2 --pipeline 2 --verify"],
    ReshardOptions,
    reshard,
    positional=["source", "destination"],
    more="""Training reads any checkpoint under any layout; this saves it the detour. Go on with altup-moe train
    DST/config.yaml.""",
)
main = RESHARD.main
