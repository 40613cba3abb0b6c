"""The archive that is carried to a GPU machine, and the script that runs there."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from altup_moe.bench.gpu import archive
from altup_moe.bench.gpu.archive import NAME, download, main, pack, pin, pins, tracked_files
from altup_moe.bench.gpu.machine import PACKED_COMMIT, commit
from altup_moe.config import UserError
from altup_moe.parallel.start_ranks import ROOT

RUNNING = "{}.{}".format(*sys.version_info)


def test_wheels_are_those_of_the_requirements_for_the_machines_python() -> None:
    assert list(pins()) == ["megatron-core==0.19.2", "greenlet==3.5.6", "liger-kernel==0.8.5"]
    lines = ['core==0.1; python_version < "3.12"', 'core==0.2; python_version >= "3.12"  # why', "other==3"]
    assert pin("core", lines, "r.txt") == "core==0.2"
    assert pin("other", lines, "r.txt") == "other==3"
    for name in ("cor", "missing"):
        with pytest.raises(UserError, match=rf"r\.txt: has no line {name}==VERSION for Python 3\.12"):
            pin(name, lines, "r.txt")


def test_wheels_are_fetched_for_the_machine_and_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **kwargs: Any) -> Any:
        seen.append(command)
        return SimpleNamespace(returncode=len(seen) - 1, stderr="a\nERROR: no matching distribution\n")

    monkeypatch.setattr(archive.subprocess, "run", run)
    download(["a==1"], tmp_path)
    (command,) = seen
    assert command[command.index("--python-version") + 1] == "3.12"
    assert {"--no-deps", ":all:", "manylinux_2_28_x86_64", "a==1"} <= set(command)
    with pytest.raises(UserError, match="pip download b==2: ERROR: no matching distribution"):
        download(["b==2"], tmp_path)
    for name in ("torch==2.11.0", "triton==3.6.0", "nvidia-nccl-cu13==2"):
        with pytest.raises(UserError, match=f"--plus {name}: the machine has its own"):
            download([name], tmp_path)
    assert len(seen) == 2


def test_the_files_are_the_checkouts_own() -> None:
    files = tracked_files(ROOT)
    assert {"altup_moe/cli.py", "configs/quickstart.yaml", "configs/clusters/h200x8.yaml", "pyproject.toml"} <= set(
        files
    )
    assert not [file for file in files if file.startswith(("tests/", "docs/", "configs/study/results/"))]


def test_the_directory_must_be_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no git checkout"):
        tracked_files(tmp_path)


def small(tmp_path: Path) -> tuple[Path, list[str], list[Path]]:
    """A checkout of two files, and a wheel."""
    root = tmp_path / "checkout"
    for file, text in {"altup_moe/a.py": "A = 1\n", "launch/gpu_check.sh": "exit 7\n"}.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text)
    wheel = tmp_path / "b-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as content:
        content.writestr("b/__init__.py", "B = 2\n")
    return root, ["altup_moe/a.py", "launch/gpu_check.sh"], [wheel]


def test_the_same_content_is_the_same_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, files, wheels = small(tmp_path)
    clock = itertools.count()
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    sizes = [pack(tmp_path / name, files, wheels, root) for name in ("one", "two")]
    assert sizes[0] == (tmp_path / "one").stat().st_size
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with tarfile.open(tmp_path / "one") as tar:
        entries = {entry.name.removeprefix(f"{NAME}/"): entry for entry in tar.getmembers()}
        told = {
            name: tar.extractfile(entry).read().decode().strip() for name, entry in entries.items() if name.isupper()
        }  # type: ignore[union-attr]
    assert list(entries) == [*files, f"wheels/{wheels[0].name}", "run.sh", PACKED_COMMIT, "PYTHON"]
    assert entries["run.sh"].mode == 0o755
    assert told == {PACKED_COMMIT: commit(), "PYTHON": "3.12"}
    monkeypatch.setattr(archive, "MOST_BYTES", 100)
    with pytest.raises(UserError, match="three: would have"):
        pack(tmp_path / "three", files, wheels, root)
    assert not (tmp_path / "three").exists()


def test_a_packed_checkout_knows_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / PACKED_COMMIT).write_text("c0ffee+\n")
    monkeypatch.setattr("altup_moe.bench.gpu.machine.ROOT", tmp_path)
    assert commit() == "c0ffee+"
    (tmp_path / PACKED_COMMIT).unlink()
    assert commit() == "", "no checkout"


def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str) -> Path:
    """The whole checkout, packed for a Python and unpacked, with a wheel of one module."""
    monkeypatch.setattr(archive, "PYTHON", python)
    _, _, wheels = small(tmp_path)
    pack(tmp_path / "gpu.tar.gz", tracked_files(ROOT), wheels)
    with tarfile.open(tmp_path / "gpu.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / NAME


def run_there(root: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`run.sh` in another directory, without this checkout on the path."""
    environment = {**os.environ, "PYTHON": sys.executable, **env}
    environment.pop("PYTHONPATH", None)
    return subprocess.run(
        ["bash", str(root / "run.sh"), *words],
        cwd=root.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_the_packed_checkout_runs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = unpacked(tmp_path, monkeypatch, RUNNING)
    done = run_there(root, "--help")
    assert "usage: altup-moe bench gpu" in done.stdout, done.stderr
    assert (root / "site" / "b" / "__init__.py").read_text() == "B = 2\n"
    (root / "altup_moe" / "bench" / "gpu" / "options.py").write_text("raise SystemExit('its own code')")
    (root / "wheels" / "b-1-py3-none-any.whl").write_text("not unpacked again")
    assert "its own code" in run_there(root, "--help").stderr


@pytest.mark.slow
def test_what_does_not_fit_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = unpacked(tmp_path, monkeypatch, "3.9")
    for done, says in (
        (run_there(root), f"Python {RUNNING}: the wheels are for 3.9"),
        (run_there(root, PYTHON="/nowhere/python3"), "/nowhere/python3: not found"),
    ):
        assert done.returncode == 2
        assert done.stderr.startswith(f"gpu_check: error: {says}")
        assert len(done.stderr.splitlines()) == 1
    (root / "PYTHON").write_text(f"{RUNNING}\n")
    hide = "import importlib.util as i\nfind = i.find_spec\n"
    hide += "i.find_spec = lambda name, *rest: None if name in ('yaml', 'rich') else find(name, *rest)\n"
    (root / "site").mkdir()
    (root / "site" / "sitecustomize.py").write_text(hide)
    done = run_there(root)
    assert (done.returncode, "has no yaml rich: pack their wheels too" in done.stderr) == (2, True)
    checkout = subprocess.run(
        ["bash", str(ROOT / "launch" / "gpu_check.sh")], capture_output=True, text=True, timeout=60
    )
    assert checkout.returncode == 2
    assert "is no packed checkout" in checkout.stderr


def test_the_door_names_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tools/pack_gpu\.py gpu\.tar\.gz"):
        main([])
    door = [sys.executable, str(ROOT / "tools" / "pack_gpu.py"), "x.tar.gz", "--plus", "torch==2.11.0"]
    done = subprocess.run(door, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "pack_gpu: error: --plus torch==2.11.0: the machine has its own build of it\n"
