"""What a run says at its start of values that are larger than what there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from altup_moe.config import ConfigError, RunConfig
from altup_moe.data.objectives import noise_mask, sample_generator
from altup_moe.train.profile import WARM_UP
from altup_moe.train.resume import ResumePoint
from altup_moe.train.start_notes import run_notes, start_of, stream_note
from tests.unit.train.runs import tiny


def fitting(**sections: dict) -> RunConfig:
    train = {"steps": 40, "eval_samples": 8, **sections.pop("train", {})}
    return tiny(train=train, optim={"warmup_steps": 4, **sections.pop("optim", {})}, **sections)


def test_what_fits_is_not_spoken_of() -> None:
    assert run_notes(fitting(log={"profile_steps": 40 - WARM_UP}), 8, 300, 1) == []
    spans = fitting(model={"seq_length": 512}, data={"objective": "span_corruption"})
    assert run_notes(spans, 8, 300, 1) == []


DEFAULTS = "(without the key: 2; 1 is the plain Transformer)"


@pytest.mark.parametrize(
    ("altup", "line"),
    [
        ({}, f"stream: altup.width=2 blocks {DEFAULTS}, variant altup around layers"),
        ({"width": 1}, "stream: altup.width=1, the plain Transformer (without the key: 2)"),
        ({"width": 4, "variant": "gemma"}, f"stream: altup.width=4 blocks {DEFAULTS}, variant gemma around layers"),
        (
            {"width": 4, "level": "branch", "correct": "delayed"},
            f"stream: altup.width=4 blocks {DEFAULTS}, variant altup around branches, its outputs delayed",
        ),
    ],
)
def test_the_stream_of_a_run_and_its_default(altup: dict, line: str) -> None:
    config = RunConfig()
    assert stream_note(replace(config, altup=replace(config.altup, **altup))) == line


def test_a_new_run_says_whose_weights_it_has() -> None:
    directory = Path("runs/mine/checkpoints/step_00000030")
    point = ResumePoint(directory, None, weights_only=True)  # type: ignore[arg-type]
    assert start_of(0, None) == "from step 0"
    assert start_of(0, point) == f"a new run, from step 0 with the weights of {directory}"
    assert start_of(30, replace(point, weights_only=False)) == "going on from step 30 (step_00000030)"


def test_keys_of_generation_are_those_that_are_set() -> None:
    (line,) = run_notes(fitting(log={"sample_interval": 10}), 8, 300, 1)
    assert line.startswith("log.sample_interval: rank 0 holds")


def test_more_validation_samples_than_there_are() -> None:
    assert run_notes(fitting(train={"eval_samples": 9}), 8, 300, 1) == [
        "train.eval_samples=9: the validation part has 8; all are read"
    ]


def test_a_vocabulary_larger_than_the_tokenizer_s() -> None:
    """As where a corpus has too few different pairs for a BPE of the size asked for."""
    config = fitting(model={"vocab_size": 512})
    assert run_notes(config, 8, 512 - 127, 1) == []
    assert run_notes(config, 8, 280, 1) == [
        "model.vocab_size=512: the tokenizer has 280 ids; 232 rows of the tables are never used"
    ]


def test_a_run_that_ends_inside_its_warm_up() -> None:
    """The ramp is linear: step 10 of 40 has a quarter of the rate."""
    config = fitting(train={"steps": 10}, optim={"warmup_steps": 40, "learning_rate": 0.02, "min_learning_rate": 0.0})
    assert run_notes(config, 8, 300, 1) == [
        "optim.warmup_steps=40: train.steps (10) end inside it; the rate reaches 0.005 of 0.02"
    ]
    assert run_notes(fitting(optim={"warmup_steps": 40}), 8, 300, 1) == []


@pytest.mark.parametrize(("first", "more", "recorded"), [(1, 40, 38), (39, 2, 0), (40, 1, 0), (41, 0, 0)])
def test_more_steps_to_record_than_the_run_takes(first: int, more: int, recorded: int) -> None:
    (note,) = run_notes(fitting(log={"profile_steps": 39}), 8, 300, first)
    assert note == (
        f"log.profile_steps=39: the run takes {more} more step(s), the first 2 unrecorded; {recorded} are recorded"
    )
    stopped = fitting(log={"profile_steps": 3}, train={"stop_after": 4})
    assert "the run takes 4 more step(s), the first 2 unrecorded; 2 are recorded" in run_notes(stopped, 8, 300, 1)[0]


def test_windows_too_short_for_the_noise_that_is_asked_for() -> None:
    """What is said is what the masks do."""
    config = fitting(data={"objective": "span_corruption", "noise_density": 0.15, "mean_noise_span": 50.0})
    (note,) = run_notes(config, 8, 300, 1)
    length = int(note.split("a window of ")[1].split()[0])
    mask = noise_mask(length, 0.15, 50.0, sample_generator(1))
    runs = int((np.diff(np.concatenate([[0], mask.astype(int)])) == 1).sum())
    assert f"drops {mask.sum()} in {runs} span(s), not {mask.sum()} in 0" in note


def test_tasks_alone_corrupt_nothing() -> None:
    """Lengths that no window of span corruption fits are no mistake in a run of tasks."""
    model = {"arch": "t5", "seq_length": 80, "decoder_seq_length": 8}
    assert run_notes(fitting(model=model, data={"mixture": ("sst2=1", "cb=1")}), 8, 300, 1) == []
    with pytest.raises(ConfigError, match=r"decoder_seq_length"):
        run_notes(fitting(model=model, data={"mixture": ("sst2=1", "python-docs=1")}), 8, 300, 1)
