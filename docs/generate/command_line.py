"""The page of the command line: every command of the registry, with its options."""

from __future__ import annotations

from collections.abc import Iterator

from altup_moe.cli import COMMANDS
from docs.generate.captured_help import Help, captured_help
from docs.generate.markdown import cell, docstring, table, text_of

PARTS = {
    "bench": ("step", "sequence", "overlap", "experts", "train", "mixing", "checkpoint"),
    "study": ("run", "status", "report"),
    "convert": ("import", "export"),
    "plan": ("published", "measure", "compare"),
    "launch": ("torchrun", "deepspeed", "slurm", "netlab"),
}
"""Commands of commands."""


def page() -> str:
    """The page's text."""
    overview = [[f"[`{name}`](#{name})", cell(command.summary)] for name, command in COMMANDS.items()]
    return text_of(
        [
            "# Command line",
            "",
            "`altup-moe COMMAND --help` shows what stands here. An option is written `--name VALUE` or `--name=VALUE`;",
            "`-` and `_` in its name are the same. A switch that is `true` by default is turned off by `--no-name`,",
            "or by `--name false`. A mistake is one line on standard error, and [exit code](exit_codes.md) 2.",
            "`python -m altup_moe` is the same as `altup-moe`.",
            "",
            *table(["command", "what it does"], overview),
            *(line for name in COMMANDS for line in _command(name)),
        ]
    )


def _command(name: str) -> Iterator[str]:
    command = COMMANDS[name]
    usage = f"altup-moe {name} {command.usage}".rstrip()
    yield from ("", f"## {name} {{#{name}}}", "", "```text", usage, "```", "", _sentence(command.summary))
    if name == "train":
        yield from ("", "`--section.key VALUE` sets a key of the [configuration](configuration.md).")
        return
    found = captured_help([name])
    yield from _help(found)
    for part in PARTS.get(name, ()):
        yield from ("", f"### {name} {part} {{#{name}-{part}}}")
        yield from _help(captured_help([name, part]))


def _help(found: Help) -> Iterator[str]:
    if found.text:
        yield from ("", "```text", *found.text.splitlines(), "```")
    if found.summary:
        for part in found.summary.split("\n\n"):
            lines = part.strip("\n").splitlines()
            drawn = any(line.startswith(" ") for line in lines)
            yield from ("", *(("```text", *lines, "```") if drawn else (docstring(part),)))
    if found.options:
        rows = [
            [f"`{one.name}`", cell(one.values), _default(one.default), cell(docstring(one.doc))]
            for one in found.options
        ]
        yield from ("", *table(["option", "values", "default", "what it is"], rows))


def _default(default: str | None) -> str:
    return "must be given" if default is None else f"`{default}`" if default else ""


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
