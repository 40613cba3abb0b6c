"""Whatever a configuration says: one line and exit code 2, or a run that starts. No traceback, no hang."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, seed, settings

from tests.fuzz.strategies import as_words, changed_keys
from tests.tiny import TINY_SIZES

pytestmark = pytest.mark.slow
CASES, CASES_LONG = 120, 300
LONGEST_SECONDS = 10.0
"""Processor time of a case: a wall clock would tell how busy the machine is. (The worker kills what sleeps on.)"""

Answer = dict[str, Any]
TINY: dict[str, dict[str, Any]] = {
    "model": TINY_SIZES,
    "altup": {"width": 2},
    "moe": {"num_experts": 4, "ffn_hidden_size": 16},
    "optim": {"warmup_steps": 2},
    "train": {"micro_batch_size": 2, "global_batch_size": 4, "eval_samples": 4, "stop_after": 1},
    "log": {"tensorboard": False},
}
KNOWN: dict[str, dict[str, Any]] = {
    "a million layers": {"model.num_layers": 10**6},
    "more layers than there ever were": {"model.num_layers": 2001},
    "a vocabulary of 2^31": {"model.vocab_size": 2**31 - 1},
    "a weight that is no number": {"data.mixture": ["python-docs=1e999999999"]},
    "NUL in a path": {"log.run_dir": "a\0b"},
    "NUL in a corpus": {"data.corpus": "a\0b"},
    "a rotary base of 2^80": {"model.rotary_base": 2**80},
    "a capacity of 1e308": {"moe.capacity_factor": 1e308},
    "a temperature of 1e-40": {
        "log.sample_temperature": 1e-40,
        "log.sample_interval": 1,
        "log.sample_prompts": ["a"],
    },
    "a batch of 2^31": {"train.global_batch_size": 2**31 - 2},
    "a sequence of 2^31": {"model.seq_length": 2**31 - 1},
}


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[list[str]], Answer]]:
    """Runs a command line in a fork of a process that has imported everything."""
    directory = tmp_path_factory.mktemp("work")
    worker = subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=directory,
        env={**__import__("os").environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONSAFEPATH": "1"},
    )
    assert worker.stdin
    assert worker.stdout

    def one(words: list[str]) -> Answer:
        worker.stdin.write(json.dumps(words) + "\n")
        worker.stdin.flush()
        answer: Answer = json.loads(worker.stdout.readline())
        return answer

    yield one
    worker.stdin.close()
    worker.wait(60)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, ask: Callable[[list[str]], Answer]) -> Path:
    """The directory of a tiny run's file; its text is tokenised already."""
    directory = tmp_path_factory.mktemp("fuzz")
    _write(directory / "warm.yaml", {}, directory)
    answer = ask(["train", str(directory / "warm.yaml"), f"--log.run_dir={directory / 'warm'}"])
    assert answer["code"] == 0, answer
    assert "saved step_00000001" in answer["out"]
    return directory


def _write(file: Path, changes: dict[str, Any], directory: Path) -> None:
    content = {section: dict(values) for section, values in TINY.items()}
    content["data"] = {"cache": str(directory / "cache")}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        content.setdefault(section, {})[name] = value
    file.write_text(yaml.safe_dump(content), encoding="utf-8")


def check(answer: Answer, what: object) -> str:
    """Fails unless a command ended as promised; 'refused' or 'started'."""
    assert answer["code"] is not None, f"{what}: still running after {answer['seconds']} s"
    assert "Traceback" not in answer["err"] + answer["out"], f"{what}: {answer['err'][-3000:]}"
    assert answer["processor"] < LONGEST_SECONDS, f"{what}: {answer['processor']:.1f} s of processor time"
    if answer["code"] == 2:
        said = [line for line in answer["err"].splitlines() if line.startswith("altup-moe: error: ")]
        assert len(said) == 1, f"{what}: {answer['err']}"
        return "refused"
    assert answer["code"] == 0, f"{what}: code {answer['code']}, {answer['err'][-3000:]}"
    assert "STARTED" in answer["out"], f"{what}: {answer['out'][-500:]}"
    return "started"


def _train(ask: Callable[[list[str]], Answer], base: Path, changes: dict[str, Any], in_file: bool) -> str:
    file = base / "case.yaml"
    try:
        _write(file, changes if in_file else {}, base)
    except UnicodeEncodeError:
        in_file = False
    words = ["train", str(file), *([] if in_file else as_words(changes))]
    if "log.run_dir" not in changes:
        words.append(f"--log.run_dir={base / 'run'}")
    try:
        return check(ask(words), (changes, in_file))
    finally:
        subprocess.run(["rm", "-rf", str(base / "run")], check=True)


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("name", KNOWN)
def test_what_once_broke_it(ask: Callable[[list[str]], Answer], base: Path, name: str, in_file: bool) -> None:
    outcome = _train(ask, base, KNOWN[name], in_file)
    assert outcome == "refused" or (not in_file and "NUL" in name)


@pytest.mark.parametrize("count", [CASES, pytest.param(CASES_LONG, marks=pytest.mark.long)])
def test_configurations(count: int, ask: Callable[[list[str]], Answer], base: Path) -> None:
    outcomes: list[str] = []
    broken: list[str] = []

    @seed(19)
    @settings(max_examples=count, database=None, derandomize=False, phases=[Phase.generate])
    @given(changed_keys())
    def cases(changes: dict[str, Any]) -> None:
        try:
            outcomes.append(_train(ask, base, changes, in_file=len(outcomes) % 2 == 0))
        except AssertionError as error:
            outcomes.append("broken")
            broken.append(str(error))

    cases()
    print(f"{len(outcomes)} cases: {outcomes.count('refused')} refused, {outcomes.count('started')} started")
    assert not broken, "\n\n".join(broken)
    assert outcomes.count("started") > count // 20, "hardly any case got as far as a run"
