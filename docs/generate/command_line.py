"""The page of the command line: every command of the registry, with all its options."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from altup_moe.cli import COMMANDS
from altup_moe.config.command import PROGRAM, Command, Group
from altup_moe.config.help_pages import Option, options_of
from docs.generate.configuration import spelled
from docs.generate.markdown import cell, docstring, table, text_of

WITH_KEYS = {"train": "CONFIG [--section.key VALUE ...]", "grow": "SRC DST [--section.key VALUE ...]"}
"""Commands that take the keys of a configuration beside their own options: their usage."""


def page() -> str:
    """The page's text."""
    overview = [[f"[`{name}`](#{name})", cell(row.summary)] for name, row in COMMANDS.items()]
    return text_of(
        [
            "# Command line",
            "",
            "`altup-moe COMMAND --help` shows the first sentences of what stands here, `--help OPTION` all about one.",
            "An option is written `--name VALUE` or `--name=VALUE`; `-` and `_` in its name are the same. A mistake is",
            "one line on standard error, and [exit code](exit_codes.md) 2. `python -m altup_moe` is the same as",
            "`altup-moe`.",
            "",
            *table(["command", "what it does"], overview),
            *(line for name in COMMANDS for line in _section(name)),
        ]
    )


def _section(name: str) -> Iterator[str]:
    module = import_module(f"altup_moe.commands.{name.replace('-', '_')}")
    yield from ("", f"## {name} {{#{name}}}")
    if name in WITH_KEYS:
        yield from _with_keys(name, module)
    groups = [found for found in vars(module).values() if isinstance(found, Group)]
    for found in vars(module).values():
        match found:
            case Command() if found.name == name:
                yield from _command(found)
            case Group():
                yield from ("", docstring(found.about))
                yield from _parts(found.commands)
            case dict() if any(found is group.commands for group in groups):
                pass  # the group has them
            case dict() if found and all(isinstance(one, Command) for one in found.values()):
                yield from _parts(found)


def _parts(commands: Any) -> Iterator[str]:
    for one in commands.values():
        yield from ("", f"### {one.name} {{#{one.name.replace(' ', '-')}}}")
        yield from _command(one)


def _command(command: Command) -> Iterator[str]:
    yield from _head(f"{command.name} {command.usage}", command.examples, command.options)
    options = options_of(command.options, leave_out=command.positional)
    given = [one for one in options_of(command.options) if one not in options]
    words = [(name.upper(), one) for name, one in zip(command.positional, given, strict=True)]
    yield from _options([*words, *((one.written, one) for one in options)])
    if command.more:
        yield from _paragraphs(command.more)


def _with_keys(name: str, module: ModuleType) -> Iterator[str]:
    record = getattr(module, f"{name.capitalize()}Options")
    yield from _head(f"{name} {WITH_KEYS[name]}", module.EXAMPLES, record)
    yield from ("", "`--section.key VALUE` is a key of the [configuration](configuration.md).")
    if name == "grow":
        yield from ("", *table(["key", "how it may grow"], [[f"`{key}`", cell(how)] for key, how in module.GROWS]))
    yield from _options([(one.written, one) for one in options_of(record)])


def _head(usage: str, examples: Sequence[str], record: type) -> Iterator[str]:
    yield from _paragraphs(record.__doc__ or "")
    yield from ("", "```text", f"{PROGRAM} {usage}".rstrip(), "```", "", "For example:", "")
    yield from ("```text", *examples, "```")


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        yield from ("", docstring(paragraph))


def _options(options: Sequence[tuple[str, Option]]) -> Iterator[str]:
    if options:
        rows = [
            [f"`{written}`".replace("|", "\\|"), cell(docstring(one.described)), _default(one)]
            for written, one in options
        ]
        yield from ("", *table(["option", "what it is", "default"], rows))


def _default(option: Option) -> str:
    if option.turns_off:
        return "done without the option"
    value = option.default
    if dataclasses.is_dataclass(value) or value is None or value is False or value == ():
        return ""
    return cell(f"`{' '.join(map(str, value)) if isinstance(value, tuple) else spelled(value)}`")
