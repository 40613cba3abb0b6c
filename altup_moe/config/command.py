"""A command of `altup-moe`: its options, its page of help, and how its words become a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from altup_moe.config.errors import ConfigError, UserError
from altup_moe.config.flags import parse, split_command
from altup_moe.config.help_pages import (
    first_sentence,
    heading,
    help_topic,
    one_option,
    option_lines,
    options_of,
    paragraphs,
    table,
)
from altup_moe.config.keys import nearest_key

PROGRAM = "altup-moe"
MOST_EXAMPLES = 5
"""Examples on the page of a group of commands, which fits a screen."""


@dataclass(frozen=True)
class Command:
    """A command whose options are the fields of a dataclass.

    Args:
        name: what stands behind `altup-moe`, as in `study run`.
        usage: what stands behind the name.
        examples: whole command lines, the first one complete.
        options: the dataclass; its docstring says what the command does and its exit codes.
        run: gets a record of it (and of a launcher, the words after `--`), and returns the exit code.
        positional: fields that are given without a name, in order.
        launcher: a command follows after `--`.
        more: paragraphs at the end of the page.
        stray: what the error about a word too many advises; `{word}` is the word. "" how options are written.
    """

    name: str
    usage: str
    examples: Sequence[str]
    options: Any
    run: Callable[..., int]
    positional: Sequence[str] = ()
    launcher: bool = False
    more: str = ""
    stray: str = ""

    def main(self, args: Sequence[str]) -> int:
        """Print the help, or parse the words and run. Returns the exit code.

        Raises:
            UserError: a mistake of the user's; of an option's value a ConfigError that names the flag.
        """
        own, command = split_command(args) if self.launcher else (list(args), [])
        topic = help_topic(own)
        if topic is not None:
            print("\n".join(self.page(topic)))
            return 0
        try:
            stray = f"a command goes behind --, as in {self.examples[0]}" if self.launcher else self.stray
            record = parse(self.options, own, None, tuple(self.positional), self.examples[0], stray)
            return self.run(record, command) if self.launcher else self.run(record)
        except ConfigError as error:
            flags = {field.name for field in fields(self.options)} - {*self.positional}
            if error.key not in flags:
                raise
            raise ConfigError(f"--{error.key.replace('_', '-')}", error.value, error.fits) from None

    def page(self, topic: str = "") -> list[str]:
        """The page of help; with a topic, the whole text of one option."""
        options = options_of(self.options, leave_out=self.positional)
        given = [option for option in options_of(self.options) if option not in options]
        full_name = f"{PROGRAM} {self.name}"
        if topic:
            return one_option([*options, *given], topic, full_name)
        about = self.options.__doc__ or ""
        words = [(name.upper(), option.line(False)) for name, option in zip(self.positional, given, strict=True)]
        lines = heading(f"{full_name} {self.usage}", self.examples, about)
        lines += ["", *table(words)] if words else []
        lines += ["", *option_lines(options)] if options else []
        if any(first_sentence(option.text) != option.text for option in options):
            lines += ["", f"{full_name} --help OPTION says all about one."]
        return [*lines, *(["", *paragraphs(self.more)] if self.more else [])]

    @property
    def summary(self) -> str:
        """The first sentence of what it does."""
        return first_sentence(" ".join((self.options.__doc__ or "").split()))


@dataclass(frozen=True)
class Group:
    """Commands of one name, as `study run`, `study status`, `study report`."""

    name: str
    about: str
    commands: Mapping[str, Command]

    def main(self, args: Sequence[str]) -> int:
        """Run one of the commands, or print which there are. Returns the exit code.

        Raises:
            UserError: no command, one that does not exist, or a mistake in it.
        """
        word, *rest = args or [""]
        if word in ("-h", "--help"):
            print("\n".join(self.page()))
            return 0
        if word not in self.commands:
            if not word:
                raise UserError(f"{self.name}: name one of its commands: {', '.join(self.commands)}")
            nearest = nearest_key(word, self.commands)
            raise UserError(f"{self.name} {word}: unknown command; nearest is {self.name} {nearest}")
        return self.commands[word].main(rest)

    def page(self) -> list[str]:
        """Which commands there are, with examples; each command's own page has its own."""
        own = list(self.commands.values())
        usage = f"{PROGRAM} {self.name} {'|'.join(self.commands)} ..."
        lines = heading(usage, [command.examples[0] for command in own[:MOST_EXAMPLES]], self.about)
        rows = table((f"{command.name} {command.usage}", command.summary) for command in own)
        return [*lines, "", *rows, "", f"{PROGRAM} {self.name} COMMAND --help says more."]
