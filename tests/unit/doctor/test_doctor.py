"""altup-moe doctor with things broken on purpose: each is named, and the exit code says whether a run could start."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from altup_moe.cli import main
from altup_moe.doctor import check, devices, disk, network, versions
from altup_moe.doctor.collective import run_collectives
from altup_moe.doctor.report import Finding, as_json, as_text, exit_code

GIB = 2**30


def by_name(findings: object) -> dict[str, Finding]:
    """Findings by their name."""
    return {found.name: found for found in findings}  # type: ignore[attr-defined]


def test_a_missing_package_that_a_run_needs_is_a_failure_and_says_what_to_install() -> None:
    findings = versions.needed(version=lambda names: None)
    assert exit_code(findings) == 1
    torch = by_name(findings)["torch"]
    assert torch.state == "failure"
    assert "pip install torch" in torch.value


def test_an_optional_package_that_is_missing_is_a_note_and_a_broken_one_a_warning() -> None:
    missing = versions.OptionalPackage("x", ("no-such-x",), "no_such_x", "pip install x", "speed")
    broken = versions.OptionalPackage(
        "y", ("no-such-y",), "json", "pip install y", "speed", probe="raise ImportError('old')"
    )
    old = versions.OptionalPackage("numpy", ("numpy",), "numpy", "pip install 'numpy<0.1'", "speed", accepts="<0.1")
    found = versions.optional((missing, broken, old))
    assert [f.state for f in found] == ["note", "warning", "warning"]
    assert found[0].value == "not installed (pip install x): speed"
    assert "ImportError: old" in found[1].value
    assert "<0.1 would fit (pip install 'numpy<0.1')" in found[2].value
    assert exit_code(found) == 0


def test_a_taken_port_is_a_warning() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = by_name(check.network_findings({}, port))["port"]
    assert (found.state, found.value.startswith(f"{port} is taken")) == ("warning", True)
    assert network.port_is_free(network.free_port())


def test_an_interface_that_does_not_exist_is_a_failure() -> None:
    found = by_name(check.network_findings({"GLOO_SOCKET_IFNAME": "lo,nope9"}, network.free_port()))
    assert found["gloo takes"].state == "failure"
    assert "there is no nope9; here are lo" in found["gloo takes"].value
    assert found["environment"].value == "GLOO_SOCKET_IFNAME=lo,nope9"


def test_no_interface_at_all_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "interfaces", dict)
    found = by_name(check.network_findings({}, network.free_port()))
    assert (found["interfaces"].state, found["gloo takes"].state) == ("failure", "warning")


def test_a_name_that_does_not_resolve_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.socket, "gethostname", lambda: "no.such.host.invalid")
    chosen, why = network.gloo_choice(None)
    assert chosen is None
    assert why == "the machine's name no.such.host.invalid does not resolve; set GLOO_SOCKET_IFNAME"


@pytest.mark.parametrize(("free", "state"), [(2**20, "failure"), (GIB // 2, "warning"), (9 * GIB, "ok")])
def test_a_full_disk(free: int, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: SimpleNamespace(free=free, total=10 * GIB))
    found = by_name(disk.disk(tmp_path / "runs" / "to be", mib=1))
    assert found["space"].state == state
    assert ("writing" in found) == (state != "failure")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_cannot_be_written_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(directory: Path, mib: int) -> float:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(disk, "write_speed", refuse)
    found = by_name(disk.disk(tmp_path))["writing"]
    assert (found.state, "Read-only file system" in found.value) == ("failure", True)


def test_little_shared_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**25, total=2**26))
    found = devices.shared_memory()
    assert (found.state, "--shm-size" in found.value) == ("warning", True)
    assert devices.shared_memory(Path("/none")).state == "warning"
    assert devices.system_memory(Path("/none")).state == "note"


def test_two_ranks_really_add_and_exchange() -> None:
    speeds = run_collectives("gloo", network.free_port(), "lo", seconds=90)
    assert isinstance(speeds, dict), speeds
    assert set(speeds) == {"all-reduce", "all-to-all"}
    assert all(speed > 0 for speed in speeds.values())


def test_a_rank_that_fails_or_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    fails = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit('no route')\ntime.sleep(60)"
    (tmp_path / "rank_fails.py").write_text(fails)
    (tmp_path / "ranks_hang.py").write_text("import time\ntime.sleep(60)")
    assert run_collectives("gloo", 1, None, 60, "rank_fails") == "rank 1 of 2: exit code 1: no route"
    assert run_collectives("gloo", 1, None, 0.5, "ranks_hang") == "not finished in 0.5 s: rank 0, 1 of 2"


def test_collectives_that_fail_are_a_failure() -> None:
    def no_process(*args: object) -> str:
        raise OSError("fork")

    (found,) = check.collective_findings(lambda *args: "rank 1 ended with 1: no route")
    assert (found.state, found.value) == ("failure", "rank 1 ended with 1: no route")
    (found,) = check.collective_findings(no_process)
    assert (found.state, found.value) == ("failure", "no process or port to be had: fork")


def test_the_text_marks_what_is_broken_and_counts() -> None:
    findings = [
        Finding("a", "x", "fine"),
        Finding("a", "long", "odd", "warning"),
        Finding("b", "y", "broken", "failure"),
    ]
    assert as_text(findings).splitlines() == [
        "a",
        "  x     fine",
        "! long  WARNING: odd",
        "b",
        "X y     FAILURE: broken",
        "a run cannot start here: 1 failure(s), 1 warning(s)",
    ]
    assert json.loads(as_json(findings))["ok"] is False
    assert (exit_code(findings), exit_code(findings[:2])) == (1, 0)


def test_the_command_prints_one_object_and_exits_by_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for broken in (False, True):
        outcome = "rank 0 ended with 1" if broken else {"all-reduce": 1e9}
        monkeypatch.setattr(check, "collective_findings", lambda o=outcome: _only(o))
        assert main(["doctor", "--json", "--run_dir", str(tmp_path)]) == int(broken)
        told = json.loads(capsys.readouterr().out)
        assert told["ok"] is not broken
        assert {"versions", "devices", "network", "disk", "collectives"} == {f["section"] for f in told["findings"]}


def _only(outcome: object) -> list[Finding]:
    return [Finding("collectives", "gloo, 2 ranks", str(outcome), "failure" if isinstance(outcome, str) else "ok")]


@pytest.mark.parametrize("argv", [["--port", "0"], ["--port", "x"], ["--run_dir", __file__], ["--speed", "1"]])
def test_a_mistake_is_one_line_and_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert argv[0].replace("_", "-") in err
