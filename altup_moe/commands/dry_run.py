"""`altup-moe train CONFIG --dry-run`: what a run would do, without starting it.

Nothing is written or downloaded and no process group is needed: any layout can be looked at on one machine. Sections
that fail (data that is damaged, a checkpoint that the run cannot go on from) say so in their place; the first such
error is raised once everything is printed, as `train` would raise it at its start.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from altup_moe.commands.dry_run_model import layout_section, model_section, plan_section
from altup_moe.commands.dry_run_run import data_section, end_section, resume_section
from altup_moe.commands.dry_run_section import Section
from altup_moe.commands.run_file import check_run_file, new_weights_note
from altup_moe.config import RunConfig, UserError
from altup_moe.config.checks import check_config, smallest_world, world_size_from_env
from altup_moe.config.expected_run import check_initial_load
from altup_moe.config.load import load_config
from altup_moe.config.packages import check_loggers
from altup_moe.config.ranges import COUNT
from altup_moe.data.found import FoundData, find_data
from altup_moe.moe.backends import find_backend
from altup_moe.plan.cluster import Cluster, load_cluster
from altup_moe.train.resume import ResumePoint, check_tokens, find_resume_point
from altup_moe.train.sample_order import ordered

ASSUMED_CLUSTER = "h100x8"
"""What the step time is estimated for unless --cluster says otherwise."""


@dataclass(frozen=True)
class DryRunOptions:
    """Flags of a dry run that are no keys of the configuration.

    Args:
        full: print every key of the configuration. json: print one JSON object.
        cluster: name of a kind of node, or a file that `plan measure` wrote; None assumes `ASSUMED_CLUSTER`.
        ranks: ranks of the run; None is what a launcher says, or else as few as the layout can run on.
    """

    full: bool = False
    json: bool = False
    cluster: str | None = None
    ranks: int | None = None


@dataclass
class Findings:
    """What the sections share. Mutable: they are found one after the other, and the first error is kept."""

    config: RunConfig
    data: list[FoundData] = field(default_factory=list)
    resume: ResumePoint | None = None
    error: UserError | None = None

    def attempt(self, work: Callable[[], None]) -> str | None:
        """Do the work; returns its error's text, if there is one."""
        try:
            work()
        except UserError as error:
            self.error = self.error or error
            return " ".join(str(error).splitlines())
        return None


def dry_run(path: str, overrides: Sequence[str], options: DryRunOptions) -> int:
    """Print what `altup-moe train PATH OVERRIDES` would do.

    Args:
        path: configuration file. overrides: words of a command line that change its keys.
    Returns:
        0: the run could start.
    Raises:
        UserError: it could not, as `train` raises it. Mistakes in the configuration come before anything is printed.
    """
    config = load_config(path, overrides)
    check_run_file(path, config, overrides)
    if options.ranks is not None:
        COUNT.check("ranks", options.ranks)
    given = options.ranks or world_size_from_env()
    ranks = given if options.ranks or given > 1 else smallest_world(config.parallel)
    check_config(config, ranks)
    check_loggers(config.log)
    if config.moe.num_experts:
        find_backend(config.moe.backend)
    cluster = load_cluster(options.cluster or ASSUMED_CLUSTER)
    sections, error = describe(config, path, overrides, ranks, cluster, options)
    if options.json:
        report: dict[str, Any] = {section.key or section.name: section.figures for section in sections}
        print(json.dumps({**report, "error": None if error is None else str(error)}))
    else:
        print("\n".join(line for section in sections for line in section.text()))
    if error is not None:
        raise error
    return 0


def describe(
    config: RunConfig, path: str, overrides: Sequence[str], ranks: int, cluster: Cluster, options: DryRunOptions
) -> tuple[list[Section], UserError | None]:
    """All sections of a checked configuration on `ranks` ranks, and the error with which `train` would end."""
    found = Findings(config)

    def order() -> None:
        found.config = ordered(config)

    def resume() -> None:
        check_initial_load(found.config, path)
        found.resume = find_resume_point(found.config)

    def data() -> None:
        found.data = find_data(found.config)
        if len(found.data) == 1 and found.data[0].fingerprint:
            check_tokens(found.resume, found.data[0].fingerprint)

    refused = found.attempt(order) or found.attempt(resume)
    damaged = found.attempt(data)
    given, config = config, found.config
    sections = [
        configuration_section(config, given, path, options.full),
        layout_section(config, ranks, [path, *overrides]),
        model_section(config),
        plan_section(config, ranks, cluster, assumed=options.cluster is None),
        data_section(config, found.data, damaged),
        resume_section(config, ranks, found.resume, refused, new_weights_note(path, config)),
        end_section(config, found.data, found.resume),
    ]
    return sections, found.error


def configuration_section(config: RunConfig, given: RunConfig, path: str, full: bool) -> Section:
    """Keys that differ from the defaults, or all of them as config.yaml would hold them.

    Args:
        given: the configuration before a start fills keys in: those do not differ, nobody set them.
    """
    now, defaults = config.to_dict(), RunConfig().to_dict()
    pairs = [
        (f"{section}.{key}", value, defaults[section][key]) for section in now for key, value in now[section].items()
    ]
    as_given = given.to_dict()
    filled_in = {
        f"{section}.{key}" for section in now for key in now[section] if now[section][key] != as_given[section][key]
    }
    differs = {key: value for key, value, default in pairs if value != default and key not in filled_in}
    head = f"{path}: {len(differs)} of {len(pairs)} keys differ from the defaults"
    figures = {"file": path, "differs": differs, "all": now}
    if full:
        return Section("configuration", [head, *yaml.safe_dump(now, sort_keys=False).splitlines()], figures)
    width = max((len(key) for key in differs), default=0)
    lines = [
        f"{key:<{width}}  {_shown(value)}  (default {_shown(default)})"
        for key, value, default in pairs
        if key in differs
    ]
    return Section("configuration", [f"{head} (--full prints all)", *lines], figures)


def _shown(value: object) -> str:
    """A value as YAML writes it on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1_000_000)
    return text.removesuffix("\n").removesuffix("\n...")
