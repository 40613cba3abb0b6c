"""`bench scaling`: efficiencies from points, one start's command, and a run of it on one and two ranks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.bench.bench_scaling import start_command
from altup_moe.bench.options import ScalingBench
from altup_moe.bench.scaling.points import (
    Mode,
    Point,
    add_points,
    check_points,
    modes,
    read_points,
    scaling_config,
    scalings,
)
from altup_moe.config import ConfigError

SMALL = ["--hidden-size", "64", "--num-layers", "2", "--seq-length", "16", "--repeats", "2", "--rounds", "1"]
COMMAND = [sys.executable, "-m", "altup_moe", "bench", "scaling"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """The command as one types it: not as a rank, whatever other tests have left in the environment."""
    alone = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return subprocess.run([*COMMAND, *words], env=alone, capture_output=True, text=True)


def point(mode: Mode, ranks: int, *seconds: float, where: str = "torchrun", tokens: int = 1024) -> Point:
    return Point(mode, ranks, {"samples": 4}, where, tokens, seconds, 10.0 * ranks, 5.0, "Some CPU", "2.13.0")


def test_strong_scaling_divides_the_time_and_weak_keeps_it() -> None:
    points = [
        *(point("strong", 1, 4.0, 4.2, 3.9), point("weak", 1, 1.0, 1.0, tokens=256)),
        *(point("strong", 2, 2.5), point("weak", 2, 1.1, tokens=512)),
        *(point("strong", 4, 1.2), point("strong", 4, 1.3, 1.4)),
    ]
    found = {(one.mode, one.ranks): one for one in scalings(points)}
    assert list(found) == [(mode, ranks) for mode in ("strong", "weak") for ranks in (1, 2, 4)]
    assert found["strong", 1].seconds == 4.0
    assert found["strong", 2].efficiency == pytest.approx(4.0 / 2.5 / 2)
    assert found["strong", 4].efficiency == pytest.approx(4.0 / 1.3 / 4)
    # On the most ranks both are one step.
    assert found["weak", 4].efficiency == pytest.approx(1.0 / 1.3)
    assert found["weak", 2].tokens_per_second == pytest.approx(512 / 1.1)
    assert (found["strong", 4].least, found["strong", 4].most, found["strong", 2].exchange_ms) == (1.2, 1.4, 20.0)


def test_launchers_are_compared_each_with_itself() -> None:
    points = [point("strong", n, 4.0 / n * slow, where=where) for where, slow in (("a", 1), ("b", 2)) for n in (1, 2)]
    assert [one.efficiency for one in scalings(points)] == [1.0] * 6


def test_samples_are_dealt_to_all_ranks() -> None:
    bench = ScalingBench(ranks=(1, 2, 4), samples=8)
    assert [modes(bench, ranks) for ranks in (1, 2, 4)] == [
        {"strong": 8, "weak": 2},
        {"strong": 4, "weak": 2},
        {"strong": 2},
    ]
    config = scaling_config(bench, 4, 2)
    assert (config.parallel.expert, config.train.micro_batch_size, config.train.global_batch_size) == (4, 2, 8)
    for key, value in (("samples", 6), ("moe_experts", 6)):
        with pytest.raises(ConfigError, match=rf"{key}=6: must be a multiple of each of ranks \(1, 2, 4\)"):
            check_points(replace(bench, **{key: value}))


def test_a_start_names_what_differs_from_the_defaults(tmp_path: Path) -> None:
    words = start_command(ScalingBench(ranks=(1, 2), width=4, threads=2, launcher="netlab", rate="1gbit"), 2, tmp_path)
    text = " ".join(words)
    assert "launch netlab --nodes 2 --rate 1gbit -- " in text
    assert text.endswith(f"bench scaling --directory {tmp_path} --ranks 1 2 --width 4 --threads 2")
    alone = " ".join(start_command(ScalingBench(launcher="netlab"), 1, tmp_path))
    assert "launch torchrun --ranks-per-node 1 -- " in alone


def test_points_of_other_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no points\.jsonl"):
        read_points(tmp_path)
    add_points(tmp_path, [point("strong", 1, 1.0), point("weak", 1, 1.0)])
    assert len(read_points(tmp_path)) == 2
    assert read_points(tmp_path)[0] == replace(point("strong", 1, 1.0), seconds=[1.0])  # type: ignore[arg-type]
    add_points(tmp_path, [replace(point("strong", 2, 1.0), shape={"samples": 8})])
    with pytest.raises(ConfigError, match="points of other shapes"):
        read_points(tmp_path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ranks", "2", "1"], "ranks="),
        (["--ranks", "3"], "samples=4: must be a multiple of each of ranks (3)"),
        (["--rate", "1mbit"], "rate='1mbit': is launcher netlab's"),
        (["--report"], "directory"),
        (["--picture", "a.txt"], "picture='a.txt': a file that ends with .png or .svg would fit"),
        (["--cluster", "h100"], "cluster"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], says: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


@pytest.mark.slow
def test_one_and_two_ranks_are_measured_and_reported_again(tmp_path: Path) -> None:
    directory, picture = tmp_path / "points", tmp_path / "scaling.png"
    done = run(*SMALL, "--directory", str(directory))
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(strong|weak) +(\d)  torchrun", done.stdout, re.M) == [
        *(("strong", "1"), ("strong", "2"), ("weak", "1"), ("weak", "2"))
    ]
    assert len(read_points(directory)) == 3
    again = ["--report", "--json", "--directory", str(directory), "--picture", str(picture), "--cluster", "h100x8"]
    said = json.loads(run(*again).stdout)
    assert said["shape"]["hidden_size"] == 64
    assert [(one["mode"], one["ranks"]) for one in said["points"]] == [
        *(("strong", 1), ("strong", 2), ("weak", 1), ("weak", 2))
    ]
    assert all(one["planned"] > 0 for one in said["points"])
    alone, pair = said["points"][:2]
    assert alone["exchange_ms"] == 0 < pair["exchange_ms"]
    assert picture.read_bytes().startswith(b"\x89PNG")
