"""All checks of the doctor in order, and their printed result."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from altup_moe.doctor import devices, disk, network, versions
from altup_moe.doctor.collective import run_collectives
from altup_moe.doctor.options import DoctorOptions
from altup_moe.doctor.report import Finding, FindingState, as_json, as_text, exit_code


def run_doctor(options: DoctorOptions) -> int:
    """Run all checks and print the findings.

    Returns:
        0 when a run could start here, 1 when something that it needs is broken.
    Raises:
        ConfigError: `run_dir` cannot be a directory.
    """
    disk.existing_part(options.run_dir)
    findings = list(findings_of(options))
    print(as_json(findings) if options.json else as_text(findings))
    return exit_code(findings)


def findings_of(options: DoctorOptions) -> Iterator[Finding]:
    """Every finding, section by section."""
    has_torch = importlib.util.find_spec("torch") is not None
    yield from versions.needed()
    yield from versions.optional()
    if has_torch:
        yield versions.backends()
        yield from devices.gpus()
    yield devices.cpu_cores()
    yield devices.system_memory()
    yield devices.shared_memory()
    yield from devices.limits()
    yield from network_findings(os.environ, options.port)
    yield from disk.disk(options.run_dir)
    if has_torch:
        yield from collective_findings()


def network_findings(env: Mapping[str, str], port: int) -> Iterator[Finding]:
    """Interfaces, the one that gloo takes, the port, and the environment variables that affect them."""
    known = network.interfaces()
    shown = [
        f"{name} {address or 'no address'}{'' if network.is_up(name) else ' (down)'}" for name, address in known.items()
    ]
    yield Finding("network", "interfaces", ", ".join(shown) or "none", "ok" if known else "failure", known)
    chosen, why = network.gloo_choice(env.get("GLOO_SOCKET_IFNAME"))
    named = "GLOO_SOCKET_IFNAME" in env
    # The launchers set the variable if the user has not, but they keep a wrong name that the user has set.
    state: FindingState = "ok" if chosen else "failure" if named else "warning"
    loopback = (
        "; other machines cannot reach that, altup-moe launch sets another" if chosen == "lo" and not named else ""
    )
    yield Finding("network", "gloo takes", f"{chosen or 'nothing'}: {why}{loopback}", state, chosen)
    if network.port_is_free(port):
        yield Finding("network", "port", f"{port} is free", "ok", True)
    else:
        yield Finding("network", "port", f"{port} is taken; nodes need another (--rdzv HOST:PORT)", "warning", False)
    present = {name: env[name] for name in network.VARIABLES if name in env}
    text = " ".join(f"{name}={value}" for name, value in present.items())
    yield Finding("network", "environment", text or "none of the variables that matter is set", "ok", present)


def collective_findings(run: Callable[..., dict[str, float] | str] = run_collectives) -> Iterator[Finding]:
    """Collectives between two ranks on this machine: NCCL if each has a GPU, else gloo."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    backend = "nccl" if count >= 2 else "gloo"
    if count == 1:
        yield Finding("collectives", "nccl", "not tried: two ranks need two GPUs", "note")
    name = f"{backend}, 2 ranks"
    try:
        outcome = run(backend, network.free_port(), "lo" if Path("/sys/class/net/lo").exists() else None)
    except OSError as error:
        outcome = f"no process or port to be had: {error}"
    if isinstance(outcome, str):
        yield Finding("collectives", name, outcome, "failure")
        return
    text = ", ".join(f"{what} {speed / 1e6:.0f} MB/s" for what, speed in outcome.items())
    yield Finding("collectives", name, f"{text} (16 MiB a rank)", "ok", outcome)
