"""`pip install` of the wheel with everything that it asks for, into an empty environment; then a run is trained.

Packages come from pip's index or its cache: the one test that needs a network.
"""

from __future__ import annotations

import os
import subprocess
import venv
from pathlib import Path

import pytest

from tests.package.inputs import write_inputs
from tests.package.installed import Installed, build_wheel
from tests.package.test_commands import ALONE, trained


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)  # pip unpacks 1.8 GB; a busy machine takes a quarter of an hour
def test_pip_brings_what_a_run_needs(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path / "dist")
    venv.create(tmp_path / "environment", with_pip=True)
    installed = Installed(tmp_path / "environment" / "bin" / "python", tmp_path / "home")
    installed.home.mkdir()
    write_inputs(installed.home)
    # pip's own settings (a proxy, a cache) are those of this machine.
    pip = [str(installed.python), "-m", "pip", "install", "--quiet", str(wheel)]
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(pip, check=True, cwd=installed.home, env=outside)
    for line in (
        "prepare-data text.txt data/tiny --vocab-size 300",
        f"train quickstart {ALONE} --log.run_dir runs/tiny",
    ):
        ended = installed.run(installed.command, *line.split())
        assert ended.code == 0, ended.err
    assert trained("runs/tiny")(installed.home, "")
    ended = installed.run(installed.python, "-m", "pip", "check")
    assert ended.code == 0, ended.out
