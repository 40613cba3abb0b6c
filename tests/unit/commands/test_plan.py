"""altup-moe plan: exit codes, one-line errors, JSON, pictures."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from altup_moe.commands import plan_progress
from altup_moe.commands.plan import one_set
from altup_moe.commands.plan_progress import ProgressLine
from altup_moe.config.load import load_config, read_yaml
from altup_moe.plan.calibrate.compare_steps import LAYOUTS, Compared, pairs_in_order
from altup_moe.plan.cluster import cluster_from, cluster_yaml, load_cluster
from altup_moe.plan.parameters import count_parameters
from altup_moe.plan.search import Progress
from altup_moe.plan.step import plan_step
from tests.command import command

main = command("plan")
ROOT = Path(__file__).parents[3]
CONFIG = str(ROOT / "configs" / "altup_k4_gpu.yaml")


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([CONFIG, "--nodes", "4", "--set", "parallel.expert=16"]) == 0
    text = capsys.readouterr().out
    assert f"{count_parameters(load_config(CONFIG)).total:,}" in text
    for word in (
        "MFU",
        "bubble",
        "exposed",
        "an MoE layer's pass is hidden",
        "nodes in the mean",
        "fits",
        "GPU hours",
        "pipeline",
    ):
        assert word in text


def test_json_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([CONFIG, "--json", "--timeline", str(tmp_path / "out")]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["gpus"] == 8
    assert [stage["parameters"] for stage in plan["stages"]] == [529211592, 529213640]
    assert (tmp_path / "out" / "step.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((tmp_path / "out" / "trace.json").read_text())["traceEvents"]


def test_what_does_not_fit_the_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([CONFIG, "--set", "train.micro_batch_size=64", "parallel.pipeline=1", "train.recompute=none"]) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cluster", "z100"], "cluster='z100'"),
        (["--set", "parallel.tensor=3"], "parallel.tensor=3"),
        (["--set", "moe.backend=tutel"], "moe.backend='tutel'"),
        (["--sweep", "8-16"], "sweep='8-16'"),
        (["--nodes", "many"], "nodes='many'"),
        (["--nodes", "0"], "--nodes=0: must be at least 1"),
        (["--nodes", "-1"], "--nodes=-1: must be at least 1"),
        (["--gpus", "0"], "--gpus=0: must be at least 1"),
        (["--keep", "0", "--search"], "--keep=0: must be at least 1"),
        (["--imbalance", "-1"], "--imbalance=-1.0: must be at least 1"),
        (["--straggler", "0.5"], "--straggler=0.5: must be at least 1"),
        (["--timeline", CONFIG], "is a file; a directory would fit"),
        (["--gpus", "7"], "must divide the world size (7); --gpus 8 would fit"),
        (["--parallel.tensor", "4"], "--set parallel.tensor=4"),
        (["--parallel.tensr=4"], "nearest is parallel.tensor"),
    ],
)
def test_one_line_says_what_cannot_be(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([CONFIG, *words]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_search_prints_its_result_alone_and_says_on_stderr_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_progress, "ELSEWHERE", 0.0)
    assert main([CONFIG, "--gpus", "2", "--search", "--json", "--keep", "2"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert len(found) == 2
    assert found[0]["run"]["gpu_hours"] == pytest.approx(found[0]["step_seconds"] * found[0]["run"]["steps"] / 1800)
    lines = shown.err.splitlines()
    layouts = lines[0].split(" of ")[1].split()[0]
    assert lines[0].startswith(f"2 GPUs: 1 of {layouts} layouts looked at")
    assert lines[-1].startswith(f"2 GPUs: {layouts} of {layouts} layouts looked at")
    assert f"best so far {found[0]['step_seconds']:.3f} s a step: " in lines[-1]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [_Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_progress_comes_from_time_to_time(stream: io.StringIO) -> None:
    now = 0.0
    with ProgressLine(stream, lambda: now) as line:
        for tenth in range(1, 101):
            now = tenth / 10
            line.show(Progress(8, 100, tenth))
    shown = stream.getvalue()
    if stream.isatty():
        assert 30 <= shown.count("layouts looked at") <= 50
        assert "\n" not in shown
        assert shown.endswith("\r\x1b[K")
    else:
        assert [row.split()[2] for row in shown.splitlines()] == ["50", "100"]
        assert "none fits so far" in shown


def test_a_short_search_shows_no_progress() -> None:
    stream = _Terminal()
    with ProgressLine(stream, lambda: 0.0) as line:
        line.show(Progress(8, 100, 1))
    assert stream.getvalue() == ""


def test_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["published"]) == 0
    assert "Mixtral 8x22B" in capsys.readouterr().out


def test_pairs_in_the_measured_order() -> None:
    compared = [Compared("a", 1.0, 2.0), Compared("b", 2.0, 3.0), Compared("c", 3.0, 1.0)]
    assert pairs_in_order(compared) == (1, 3)


@pytest.mark.parametrize("name", LAYOUTS)
def test_compared_layouts_can_be_planned(name: str) -> None:
    ranks, config = LAYOUTS[name]
    assert plan_step(config, load_cluster("h100x8"), ranks).seconds > 0


def test_compare_wants_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare"]) == 2
    assert "FILE is missing, as in altup-moe plan compare mine.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["compare", "mine.yaml", "--netlab", "fast"], ["measure", "--netlab", "5"]])
def test_netlab_wants_a_rate(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "kbit, mbit or gbit" in error
    assert error.count("\n") == 1


def test_a_measured_file_is_read_back(tmp_path: Path) -> None:
    """What `measure` writes is what a plan reads; the measuring itself takes time, and is no test's."""
    cluster = load_cluster("h100x8")
    (tmp_path / "mine.yaml").write_text(cluster_yaml(cluster))
    assert cluster_from(read_yaml(tmp_path / "mine.yaml"), "h100x8") == cluster


def test_a_plan_imports_no_torch() -> None:
    code = f"import sys; from altup_moe.commands import plan; plan.main([{CONFIG!r}]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_set_may_be_given_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """The first of them counts as well, and its mistakes are found."""
    assert one_set(["a.yaml", "--set", "x=1", "y=2", "--nodes", "4", "--set=z=3"]) == [
        *("a.yaml", "--nodes", "4", "--set"),
        *("x=1", "y=2", "z=3"),
    ]
    assert one_set(["a.yaml", "--nodes", "4"]) == ["a.yaml", "--nodes", "4"]
    assert main([CONFIG, "--set", "sequence.stride=2", "--set", "parallel.expert=1"]) == 2
    assert "sequence.stride" in capsys.readouterr().err
