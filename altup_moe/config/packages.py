"""Optional packages that only some runs need: their modules, supported versions and how to install them."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from importlib.util import find_spec

from altup_moe.config.errors import ConfigError
from altup_moe.config.schema import LogConfig


@dataclass(frozen=True)
class RequiredPackage:
    """An optional package.

    ``modules``: all must be present; the first is also the distribution's name. ``install``: command that installs it.
    ``versions``: supported versions, from the first up to but excluding the second.
    """

    modules: tuple[str, ...]
    install: str
    versions: tuple[str, str] | None = None

    def found(self) -> bool:
        """Whether the package can be used. Does not import it."""
        return self.problem() is None

    def problem(self) -> str | None:
        """Why the package cannot be used; None if it can."""
        if not all(find_spec(module) for module in self.modules):
            return "is not installed"
        try:
            version = importlib.metadata.version(self.modules[0])
        except importlib.metadata.PackageNotFoundError:
            # A source tree on the path has no version; accept it.
            return None
        if self.versions and not _release(self.versions[0]) <= _release(version) < _release(self.versions[1]):
            return f"{version} is installed, which this was not written for"
        return None


def _release(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, without suffixes (0.19.8+cpu, 1.0rc1)."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(n) for n in numbers[0].split(".")) if numbers else ()


PACKAGES = {
    # Its MoE layer is called, and its process groups are filled, by private names.
    "deepspeed": RequiredPackage(("deepspeed",), "pip install 'deepspeed>=0.19.4,<0.20'", ("0.19.4", "0.20")),
    # `import tutel` alone passes where its kernels were not built.
    "tutel": RequiredPackage(
        ("tutel", "tutel_custom_kernel"), "pip install --no-build-isolation git+https://github.com/microsoft/Tutel"
    ),
    # From 2.9 on as megatron-core 0.16.1 asks; 0.19.2 names no version.
    "transformer_engine": RequiredPackage(
        ("transformer_engine",),
        "pip install --no-build-isolation 'transformer-engine[core_cu13,pytorch]>=2.9,<3'",
        ("2.9", "3"),
    ),
}
"""moe.backend, train.engine or fused layers -> the package they need beside those that come with altup-moe."""


def check_installed(key: str, value: str, name: str | None = None, instead: str = "megatron") -> None:
    """Raise ConfigError if the value of a key needs a package that cannot be used. Imports nothing.

    Args:
        name: key of `PACKAGES`; None for `value` itself. instead: a value that needs no package, for the message.
    """
    package = PACKAGES.get(name or value)
    if package and (problem := package.problem()):
        subject = f"{name} " if name else ""
        raise ConfigError(key, value, f"{subject}{problem}; {package.install}, or {instead} would fit")


def check_loggers(log: LogConfig) -> None:
    """Raise a ConfigError for a tracker whose package is not installed. Imports nothing."""
    for key, value, package in (
        ("log.wandb_project", log.wandb_project, "wandb"),
        ("log.mlflow_experiment", log.mlflow_experiment, "mlflow"),
    ):
        if value is not None and find_spec(package) is None:
            raise ConfigError(key, value, f"needs the {package} package: pip install {package}")
