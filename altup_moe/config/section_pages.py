"""Help pages of the keys of a run, by section: `altup-moe train --help optim`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence

from altup_moe.config.errors import UserError
from altup_moe.config.help_pages import first_sentence, heading, one_option, option_lines, options_of, paragraphs, table
from altup_moe.config.keys import nearest_key
from altup_moe.config.schema import RunConfig


def sections() -> dict[str, type]:
    """Section -> its dataclass, in the order of a configuration file."""
    hints = typing.get_type_hints(RunConfig)
    return {field.name: hints[field.name] for field in dataclasses.fields(RunConfig)}


def section_lines() -> list[str]:
    """Every section in a line."""
    return table(
        (name, first_sentence(" ".join((section.__doc__ or "").split()))) for name, section in sections().items()
    )


def usual_lines(config: RunConfig, keys: Sequence[str]) -> list[str]:
    """Some keys with their units, and their values in a configuration."""
    known = {option.written.split()[0]: option for option in options_of(RunConfig, config)}
    return option_lines([known[f"--{key.replace('_', '-')}"] for key in keys])


def topic_page(command: str, topic: str, config: RunConfig) -> list[str]:
    """The page of `--help TOPIC`: all keys of a section, or the whole text of one key.

    Args:
        command: as in `altup-moe train`.
        config: whose values are shown as defaults.
    Raises:
        UserError: neither a section nor a key has this name.
    """
    name = topic.lstrip("-").replace("-", "_")
    if name in sections():
        about = paragraphs(sections()[name].__doc__ or "")
        return [*about, "", *option_lines(options_of(RunConfig, config, section=name), whole=True)]
    if "." in name:
        return one_option(options_of(RunConfig, config), name, command)
    nearest = f"{command} --help {nearest_key(name, sections())}"
    raise UserError(f"{command} --help {topic}: no section of that name; nearest is {nearest}")


def run_page(
    command: str,
    usage: str,
    examples: Sequence[str],
    options: type,
    config: RunConfig,
    usual: Sequence[str],
    positional: Sequence[tuple[str, str]] = (),
) -> list[str]:
    """The page of a command that takes keys of a run beside its own options."""
    return [
        *heading(f"{command} {usage}", examples, options.__doc__ or ""),
        "",
        *table(positional),
        *option_lines(options_of(options)),
        "",
        "Keys of the configuration that are often given:",
        *usual_lines(config, usual),
        "",
        f"All keys by section ({command} --help SECTION lists them, --help SECTION.KEY says all about one):",
        *section_lines(),
    ]
