"""The wheel, built from this checkout, and a fresh environment that has it and nothing of the checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("driver.py")


@dataclass(frozen=True)
class Ended:
    """What a command line printed and its exit code."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Installed:
    """An environment that holds the wheel. ``home``: the directory that commands run in; no checkout is above it."""

    python: Path
    home: Path

    @property
    def command(self) -> Path:
        """The program `altup-moe`."""
        return self.python.with_name("altup-moe")

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a shell that has activated nothing: no PYTHONPATH leads to the checkout."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
        return {**kept, "HOME": str(self.home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1"}

    def run(self, *words: str | Path, timeout: float = 120) -> Ended:
        """Run a program in `home`."""
        done = subprocess.run(
            list(map(str, words)),
            cwd=self.home,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    def altup_moe(self, lines: Sequence[Sequence[str]], timeout: float = 280) -> list[Ended]:
        """Run command lines of `altup-moe` one after the other, in children of one process that has imported torch."""
        done = subprocess.run(
            [str(self.python), "-I", str(DRIVER)],
            input=json.dumps([list(line) for line in lines]),
            cwd=self.home,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=timeout,
        )
        return [Ended(**ended) for ended in json.loads(done.stdout)]


def build_wheel(directory: Path) -> Path:
    """Build the wheel into a directory, without a network."""
    words = ["wheel", "--quiet", "--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", str(directory)]
    subprocess.run([sys.executable, "-m", "pip", *words, str(ROOT)], check=True, stdin=subprocess.DEVNULL)
    (wheel,) = directory.glob("*.whl")
    return wheel


def install(wheel: Path, directory: Path) -> Installed:
    """Install the wheel alone; the libraries are those of the running interpreter, found through a .pth file.

    A path of such a file is put on `sys.path`, but .pth files inside it are not read: the editable installation of the
    checkout, which is one, stays unknown.
    """
    environment = directory / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    (site,) = environment.glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if re.search(r"(site|dist)-packages$", path)]
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n")
    words = ["install", "--quiet", "--no-index", "--no-deps", "--ignore-installed", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *words], check=True)
    home = directory / "home"
    home.mkdir()
    return Installed(python, home)
