"""`altup-moe inspect RUN`: the content of a checkpoint, or how two differ. Reads only, needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from altup_moe.checkpoint.compare import counter_differences, name_filter, norms, tensor_differences
from altup_moe.checkpoint.layout import describe_layout
from altup_moe.checkpoint.listing import ListingRow, listed_tensors, listing_rows
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import find_checkpoint
from altup_moe.config import ConfigError
from altup_moe.config.command import Command
from altup_moe.config.expected_run import check_source
from altup_moe.config.resume_keys import spelled_changes


@dataclass(frozen=True)
class InspectOptions:
    """Show the content of a checkpoint, or compare two.

    Exit code 0: fine; with --diff, both are equal. 1: they differ. 2: one cannot be read or is damaged.
    """

    path: Path
    """Run directory (its latest checkpoint), or directory of a checkpoint."""
    verify: bool = False
    """Compare every file with the hash it was saved with."""
    tensors: str | None = None
    """Glob of the tensors to look at, such as 'model.layers.0.*' or 'exp_avg/*'; None is all."""
    norms: bool = True
    """Print L2 norms, for which the tensors are read."""
    diff: Path | None = None
    """Another checkpoint or run directory: print only what differs, the largest first."""
    json: bool = False
    """Print one JSON object."""


def summary(checkpoint: Checkpoint) -> dict[str, Any]:
    """Description of a checkpoint as a JSON-serialisable record."""
    m = checkpoint.manifest
    return {
        "checkpoint": str(checkpoint.directory),
        "format_version": m.format_version,
        "step": m.step,
        "consumed_samples": m.consumed_samples,
        "skipped_steps": m.skipped_steps,
        "optimizer_steps": m.optimizer_steps,
        "scheduler_steps": m.scheduler_steps,
        "world_size": m.world_size,
        "layout": describe_layout(checkpoint.config.parallel, m.world_size),
        "libraries": m.libraries,
        "data_fingerprint": m.data_fingerprint,
        "changes": m.changes,
        "files": len(m.files),
        "bytes": sum(file.size for file in m.files.values()),
        "parameters": sum(math.prod(t.shape) for t in m.of_kind("weights").values()),
        "tensors": len(m.tensors),
        "optimizer": m.has_optimizer,
        "random_streams": sum(name.startswith("rng/") for name in m.tensors),
    }


def _summary_lines(known: dict[str, Any]) -> Iterator[str]:
    yield known["checkpoint"]
    yield (
        f"  step {known['step']:,}, {known['consumed_samples']:,} samples, {known['optimizer_steps']:,} updates, "
        f"{known['skipped_steps']:,} skipped; format {known['format_version']}"
    )
    yield f"  saved by {known['layout']}"
    yield f"  libraries {', '.join(f'{name} {v}' for name, v in sorted(known['libraries'].items())) or 'unknown'}"
    for change in known["changes"]:
        keys = {key: (before, now) for key, (before, now) in change["keys"].items()}
        yield f"  changed after step {change['step']}: {spelled_changes(keys)}"
    yield f"  data {known['data_fingerprint'] or 'none: it was not trained here'}"
    yield (
        f"  {known['parameters']:,} parameters, {known['tensors']:,} tensors in {known['files']:,} files, "
        f"{known['bytes'] / 1e6:,.1f} MB; {'with' if known['optimizer'] else 'without'} optimizer state, "
        f"{known['random_streams']} random streams"
    )


def _row_lines(found: Sequence[ListingRow]) -> Iterator[str]:
    group: str | None = None
    width = max((len(row.label) for row in found), default=0) + 2
    for row in found:
        if row.group != group:
            group = row.group
            yield group or "outside the layers"
        member, count = row.members[0], len(row.members)
        shape = f"{f'{count} x ' if count > 1 else ''}{list(member.shape)}"
        kinds = [f"{'' if kind == 'weights' else f'{kind} '}{dtype}{_norm(row, kind)}" for kind, dtype in _kinds(row)]
        yield f"  {row.label:<{width}}{shape:<18} {'  '.join(kinds)}".rstrip()


def _kinds(row: ListingRow) -> list[tuple[str, str]]:
    return list(row.members[0].dtypes.items())


def _norm(row: ListingRow, kind: str) -> str:
    """The norm of a row; for several members the smallest and the largest."""
    values = [member.norms[kind] for member in row.members if kind in member.norms]
    if not values:
        return ""
    low, high = f"{min(values):.6g}", f"{max(values):.6g}"
    return f" {low}" if low == high else f" {low} .. {high}"


def inspect(options: InspectOptions) -> int:
    """Print a checkpoint. Returns 0."""
    wanted = name_filter(options.tensors)
    check_source(options.path, "inspect")
    with Checkpoint(find_checkpoint(options.path)) as checkpoint:
        known = summary(checkpoint)
        if options.verify:
            checkpoint.verify()
        chosen = {name: t for name, t in checkpoint.manifest.tensors.items() if wanted(name)}
        if not chosen:
            raise ConfigError(
                "tensors", options.tensors, "matches no tensor; 'model.layers.0.*' would be all of a layer"
            )
        read = [name for name in chosen if options.norms and not name.startswith("rng/")]
        found = listed_tensors(chosen, norms(checkpoint, read))
    if options.json:
        listed = [asdict(entry) for entry in found]
        print(json.dumps({**known, "verified": options.verify, "entries": listed}))
        return 0
    for line in _summary_lines(known):
        print(line)
    if options.verify:
        print(f"  verified: all {known['files']:,} files are as they were saved (SHA-256)")
    for line in _row_lines(listing_rows(found)):
        print(line)
    return 0


def diff(options: InspectOptions, other: Path) -> int:
    """Print the differences between two checkpoints. Returns 0 if there are none, else 1."""
    wanted = name_filter(options.tensors)
    check_source(options.path, "inspect", ("--diff", str(other)))
    check_source(other, "inspect", key="diff")
    with Checkpoint(find_checkpoint(options.path)) as a, Checkpoint(find_checkpoint(other)) as b:
        if not any(map(wanted, [*a.manifest.tensors, *b.manifest.tensors])):
            raise ConfigError("tensors", options.tensors, "matches no tensor of either")
        if options.verify:
            a.verify()
            b.verify()
        counted = counter_differences(a.manifest, b.manifest)
        found = tensor_differences(a, b, wanted)
        names_of_both = {*a.manifest.tensors, *b.manifest.tensors}
        compared = sum(wanted(name) and not name.startswith("rng/") for name in names_of_both)
        names = (str(a.directory), str(b.directory))
    if options.json:
        content = {"first": names[0], "second": names[1], "equal": not (counted or found)}
        # JSON has no infinity.
        listed = [{k: v if v != math.inf else None for k, v in asdict(d).items()} for d in found]
        print(json.dumps({**content, "counters": counted, "differences": listed}))
        return int(bool(counted or found))
    for name, (left, right) in counted.items():
        print(f"{name}: {left} and {right}")
    for d in found:
        print(f"{d.name}: {d.problem or f'relative {d.relative:.3g}, absolute {d.absolute:.3g}, {d.count:,} elements'}")
    print(f"{len(found)} of {compared:,} tensors differ" if found else f"all {compared:,} tensors are equal")
    return int(bool(counted or found))


def inspect_or_diff(options: InspectOptions) -> int:
    """Show one checkpoint or compare two. Returns the exit code."""
    return inspect(options) if options.diff is None else diff(options, options.diff)


INSPECT = Command(
    "inspect",
    "PATH [options]",
    ["altup-moe inspect runs/a --tensors 'model.layers.0.*'", "altup-moe inspect runs/a --diff runs/b"],
    InspectOptions,
    inspect_or_diff,
    positional=["path"],
)
main = INSPECT.main
