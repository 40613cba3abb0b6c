"""Which deepspeed is taken, and what is said where there is none."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from altup_moe.config import UserError
from altup_moe.parallel import deepspeed_groups
from altup_moe.parallel.deepspeed_groups import require_deepspeed


def installed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    def answer(package: str) -> str:
        if version is None:
            raise PackageNotFoundError(package)
        return version

    monkeypatch.setattr(deepspeed_groups, "version", answer)


@pytest.mark.parametrize("version", ["0.19.4", "0.19.8", "0.19.10", "0.19.8+unknown"])
def test_versions_that_fit(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, version)
    require_deepspeed()


@pytest.mark.parametrize("version", ["0.18.0", "0.19.3", "0.20.0", "1.0.0", "unknown"])
def test_versions_that_do_not(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, version)
    with pytest.raises(UserError, match=f"deepspeed {version} is installed.*pip install 'deepspeed>=0.19.4,<0.20'"):
        require_deepspeed()


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, None)
    with pytest.raises(UserError, match=r"is not installed; pip install 'deepspeed>=0\.19\.4,<0\.20'"):
        require_deepspeed()
