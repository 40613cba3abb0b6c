"""Versions of the packages that a run needs, and of those that it can use."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from altup_moe.config.packages import PACKAGES
from altup_moe.doctor.report import Finding, FindingState

NEEDED = ("torch", "megatron-core", "transformers", "tokenizers", "safetensors", "numpy")
PROBE_SECONDS = 20.0


@dataclass(frozen=True)
class OptionalPackage:
    """A package that a run can use.

    Attributes:
        distributions: names under which it may be installed.
        module: name to import.
        install: the command that installs it.
        probe: Python code that fails if the package does not work (None: being installed is enough).
        accepts: versions that fit, as a version specifier.
    """

    name: str
    distributions: tuple[str, ...]
    module: str
    install: str
    use: str
    probe: str | None = None
    accepts: str = ""


OPTIONAL = (
    OptionalPackage(
        "deepspeed",
        ("deepspeed",),
        "deepspeed",
        PACKAGES["deepspeed"].install,
        "expert backend, engine and launcher",
        accepts=">=0.19.4,<0.20",
    ),
    OptionalPackage(
        "tutel",
        ("tutel",),
        "tutel",
        PACKAGES["tutel"].install,
        "expert backend",
        # `import tutel` alone passes without the kernel.
        probe="import tutel_custom_kernel; from tutel import moe",
    ),
    OptionalPackage(
        "apex",
        ("apex",),
        "apex",
        "pip install --no-build-isolation git+https://github.com/NVIDIA/apex",
        "fused Adam on GPUs",
        # The pure Python build lacks the extensions that Megatron uses.
        probe="import apex, amp_C",
    ),
    OptionalPackage(
        "Transformer Engine",
        ("transformer-engine", "transformer_engine", "transformer-engine-cu12"),
        "transformer_engine",
        PACKAGES["transformer_engine"].install,
        "norms, grouped experts and fused Adam on GPUs",
        probe="import transformer_engine.pytorch",
        accepts=">=2.9.0a0,<3",
    ),
    OptionalPackage("triton", ("triton",), "triton", "pip install triton", "mixing kernels on GPUs"),
)


def version_of(distributions: Iterable[str]) -> str | None:
    """Version of the first installed distribution of these; None if none is installed."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def tested_versions() -> dict[str, str]:
    """The versions that altup-moe pins for this interpreter, by name; empty if altup-moe is not installed."""
    try:
        from packaging.requirements import Requirement

        texts = importlib.metadata.requires("altup-moe") or []
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return {}
    wanted = [Requirement(text) for text in texts]
    return {
        r.name: str(r.specifier).removeprefix("==")
        for r in wanted
        if r.marker is None or r.marker.evaluate({"extra": ""})
    }


def needed(version: Callable[[Iterable[str]], str | None] = version_of) -> list[Finding]:
    """Python and every package that a run needs. A version other than the tested one is a warning."""
    fits = sys.version_info >= (3, 11)
    text = f"{platform.python_version()} ({sys.executable})" + ("" if fits else "; 3.11 or newer would fit")
    found = [Finding("versions", "python", text, "ok" if fits else "failure", platform.python_version())]
    pins = tested_versions()
    for name in NEEDED:
        have, pin = version((name,)), pins.get(name)
        if have is None:
            found.append(Finding("versions", name, f"not installed (pip install {name}=={pin or '...'})", "failure"))
        elif pin and have.partition("+")[0] != pin:
            found.append(Finding("versions", name, f"{have}; tested with {pin}", "warning", have))
        else:
            found.append(Finding("versions", name, have, "ok", have))
    return found


def probe(text: str, seconds: float = PROBE_SECONDS) -> str | None:
    """Run Python code in a process of its own, because an import may crash. Returns None or the error's last line."""
    try:
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not done after {seconds:.0f} s"
    lines = done.stderr.strip().splitlines()
    return None if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")


def optional(packages: Iterable[OptionalPackage] = OPTIONAL) -> list[Finding]:
    """A finding for each package that a run can use: its version, or why it is missing or does not work."""
    return [_optional(package) for package in packages]


def _optional(package: OptionalPackage) -> Finding:
    name, have = package.name, version_of(package.distributions)
    if importlib.util.find_spec(package.module) is None:
        return Finding("versions", name, f"not installed ({package.install}): {package.use}", "note")
    text = have or "installed, version unknown"
    if package.accepts and have and not _accepts(package.accepts, have):
        return Finding("versions", name, f"{text}; {package.accepts} would fit ({package.install})", "warning", have)
    if package.probe and (problem := probe(package.probe)):
        return Finding("versions", name, f"{text}, but `{package.probe}` fails: {problem}", "warning", have)
    return Finding("versions", name, f"{text}: {package.use}", "ok", have)


def _accepts(specifier: str, version: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(specifier).contains(version, prereleases=True)


def backends() -> Finding:
    """The process-group backends of this torch, and the version of NCCL."""
    import torch
    import torch.distributed as dist

    names = [name for name in ("gloo", "nccl", "mpi", "ucc") if dist.is_backend_available(name)]
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if "nccl" in names else None
    text = ", ".join(f"nccl {nccl}" if name == "nccl" else name for name in names) or "none"
    state: FindingState = "ok" if "gloo" in names or "nccl" in names else "failure"
    return Finding("versions", "process groups", text, state, names)
