"""Modules of the user's that add stream variants, backends, objectives or corpora before a configuration is read.

`ALTUP_MOE_PLUGINS` names them, separated by commas: Python files or importable modules, which call
`altup_moe.api.register_variant` and its kin. Every process of a run, of a study and of a command reads it, so that

    ALTUP_MOE_PLUGINS=my_variant.py altup-moe study run my_study.yaml

knows the names in all of its workers.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from altup_moe.config.errors import ConfigError

VARIABLE = "ALTUP_MOE_PLUGINS"
_loaded: set[str] = set()
"""Entries that this process has imported, or is importing."""


def load_plugins() -> None:
    """Import the modules that the environment names, each once a process.

    Raises:
        ConfigError: one that is not there, or that fails.
    """
    for entry in filter(None, (word.strip() for word in os.environ.get(VARIABLE, "").split(","))):
        if entry in _loaded:
            continue
        # First: a plugin may load a configuration itself.
        _loaded.add(entry)
        try:
            _import(entry)
        except ConfigError:
            _loaded.discard(entry)
            raise
        except Exception as error:
            _loaded.discard(entry)
            raise ConfigError(VARIABLE, entry, f"fails: {type(error).__name__}: {error}") from error


def plugin_files() -> list[Path]:
    """Python files of the modules that were loaded; of a package its `__init__.py`."""
    names = [f"altup_moe_plugin_{Path(entry).stem}" if entry.endswith(".py") else entry for entry in sorted(_loaded)]
    files = [getattr(sys.modules.get(name), "__file__", None) for name in names]
    return [Path(file) for file in files if file]


def _import(entry: str) -> None:
    if not entry.endswith(".py"):
        try:
            import_module(entry)
        except ModuleNotFoundError as error:
            if error.name != entry.partition(".")[0]:
                raise
            raise ConfigError(VARIABLE, entry, "no module has this name; the path of a .py file would fit") from None
        return
    path = Path(entry).resolve()
    if not path.is_file():
        raise ConfigError(VARIABLE, entry, f"there is no such file below {Path.cwd()}; a whole path would fit")
    name = f"altup_moe_plugin_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
