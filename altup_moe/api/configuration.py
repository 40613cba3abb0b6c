"""Load and check configurations: the command's rules, from Python values."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from altup_moe.config import RunConfig, checks, load
from altup_moe.config.keys import unknown_key

Overrides = Mapping[str, Any] | Sequence[str]
"""Values by dotted key, or the words of a command line."""


def load_config(source: str | Path | Mapping[str, Any] | None = None, overrides: Overrides = ()) -> RunConfig:
    """The configuration of a run, with values of the right types.

    Whether they fit each other and the number of ranks is checked by `check_config`, which `session` and `train` call.

    Args:
        source: path of a YAML file, name of a shipped one, or a mapping section -> key -> value; None is the defaults.
        overrides: values by dotted key, ``{"train.steps": 50}``, or words as on a command line,
            ``["--train.steps", "50"]``; they win over the source.

    Returns:
        A frozen record of frozen sections. `dataclasses.replace` changes values, too.

    Raises:
        ConfigError: an unknown key (the nearest is named), or a value of the wrong type.
        UserError: a file that cannot be read, or is not YAML.

    Examples:
        >>> config = load_config({"model": {"num_layers": 2}}, {"train.steps": 50})
        >>> config.model.num_layers, config.train.steps
        (2, 50)
    """
    config = load.from_dict(dict(source)) if isinstance(source, Mapping) else load.load_config(source)
    if isinstance(overrides, Mapping):
        return _changed(config, overrides)
    return load.parse(RunConfig, overrides, default=config) if overrides else config


def check_config(config: RunConfig, world_size: int | None = None) -> None:
    """Check that values fit each other, the number of ranks and what lies on the disk. Loads no torch.

    Args:
        world_size: processes that will run it; None asks torch.distributed, then the launcher (WORLD_SIZE), then is 1.

    Raises:
        ConfigError: the first value that does not fit: dotted key, value and what would.

    Examples:
        >>> check_config(load_config(None, {"parallel.tensor": 2}), world_size=2)
    """
    checks.check_config(config, _world_size() if world_size is None else world_size)


def world_size() -> int:
    """Number of ranks that run this program.

    Those of torch.distributed's world if there is one, else what the launcher says (WORLD_SIZE); 1 alone. It loads no
    torch.

    Raises:
        ConfigError: WORLD_SIZE is no number.

    Examples:
        >>> config = load_config(None, {"parallel.data": world_size()})
    """
    return _world_size()


def _world_size() -> int:
    """Ranks as `world_size` (whose name is also an argument here)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        return int(torch.distributed.get_world_size())
    return checks.world_size_from_env()


def _changed(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    for dotted, value in overrides.items():
        if dotted not in load.HINTS:
            raise unknown_key(dotted, value, load.HINTS)
        section, _, key = dotted.partition(".")
        value = load.coerce(dotted, load.HINTS[dotted], value)
        config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    return config
