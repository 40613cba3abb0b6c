"""Products of a study's grid: every combination of the values listed for some keys, each with a name."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from altup_moe.config import ConfigError

_FIELD = re.compile(r"\{([^{}]*)\}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def combinations(lists: Mapping[str, Sequence[object]]) -> Iterator[dict[str, object]]:
    """Yield every combination of the values. The last key changes fastest."""
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def filled(key: str, template: str, values: Mapping[str, object]) -> str:
    """A template with ``{altup.width}`` replaced by the combination's value.

    Raises:
        ConfigError: it names a key that the grid does not have (`key` is the template's own).
    """

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            fits = f"the grid has no {match[1]!r}; {', '.join('{' + known + '}' for known in values)} would fit"
            raise ConfigError(key, template, fits)
        return spelled(values[match[1]])

    return _FIELD.sub(value, template)


def spelled(value: object) -> str:
    """Spell a value for a name: `true`, `none`, `1.25`."""
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def default_name(values: Mapping[str, object]) -> str:
    """Name a combination, as in `width-2-select-same`; characters that file names do not allow become dashes."""
    return safe("-".join(f"{key.rpartition('.')[2]}-{spelled(value)}" for key, value in values.items()))


def safe(name: str) -> str:
    """Replace the characters of a name that file names do not allow."""
    return _UNSAFE.sub("-", name)
