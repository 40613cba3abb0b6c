"""Samples of objectives, tasks and mixtures: exact shares, one sample a number, and what does not fit refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from altup_moe.config import ConfigError, DataError, RunConfig
from altup_moe.data.document import Document
from altup_moe.data.prepare import prepare_tokens
from altup_moe.data.tasks.fit import Room
from altup_moe.data.tasks.records import Passage, example
from altup_moe.data.tokenizer import Tokenizer, train_bpe
from altup_moe.train.batches import micro_batches
from altup_moe.train.mixture import run_samples
from altup_moe.train.samples import Samples, open_corpus, open_samples
from altup_moe.train.task_samples import examples_sha256
from tests.unit.train.runs import TEXT, tiny

T5 = {"arch": "t5", "decoder_seq_length": 16}
ROWS = {
    "sst2": [{"sentence": f"film {n}", "label": n % 2} for n in range(5)],
    "cb": [{"premise": "a dog", "hypothesis": f"{n}", "label": n % 3} for n in range(3)],
}


@pytest.fixture(scope="module")
def with_sentinels(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_bpe([TEXT], 290, tmp_path_factory.mktemp("bpe") / "tokenizer", sentinels=10)


@pytest.fixture(scope="module")
def corpus(with_sentinels: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents, each of its own text, in tokens of a tokenizer with sentinels."""
    path = tmp_path_factory.mktemp("data") / "tokens"
    prepare_tokens((Document(f"d{n}", f"{n} {TEXT}") for n in range(12)), with_sentinels, path, "mine")
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    directory = tmp_path_factory.mktemp("tasks")
    for name, rows in ROWS.items():
        (directory / name).mkdir()
        for split, part in (("train", rows), ("validation", rows[:2])):
            (directory / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, part)))
    return tuple(f"{name}={directory / name}" for name in ROWS)


def mixed(corpus: Path, files: tuple[str, ...], mixture: tuple[str, ...], **sections: Any) -> RunConfig:
    data = {"corpus": str(corpus), "mixture": mixture, "task_files": files, **sections.pop("data", {})}
    return tiny(data=data, **sections)


def text(data: Samples, number: int) -> str:
    return data.tokenizer.decode(data.train[number]["tokens"].tolist())


@pytest.mark.parametrize(("model", "objective"), [(T5, None), (T5, "prefix"), ({}, "prefix"), ({}, "span_corruption")])
def test_samples_of_an_objective(corpus: Path, model: dict[str, Any], objective: str | None) -> None:
    config = tiny(model=model, data={"objective": objective})
    data = open_samples(config, corpus)
    length = 16 if model else 24
    for samples in (data.train, data.valid):
        sample = samples[0]
        assert {sample[key].shape for key in ("tokens", "labels", "loss_mask")} == {(length,)}
        assert (sample["tokens"].dtype, sample["loss_mask"].dtype) == (torch.int64, torch.float32)
        assert 0 < sample["loss_mask"].sum() <= length
        if model:
            assert sample["encoder_tokens"].shape == sample["encoder_mask"].shape == (24,)
            assert sample["encoder_tokens"].dtype == torch.int64
            assert sample["encoder_mask"].dtype == torch.float32
            assert sample["tokens"][0] == data.tokenizer.pad_id

    def all_of(part: Any, count: int) -> list[list[int]]:
        return [torch.cat([value.flatten() for value in part[n].values()]).tolist() for n in range(count)]

    assert all_of(data.train, 12) == all_of(open_samples(config, corpus, scan=False).train, 12)
    other = tiny(model=model, data={"objective": objective}, train={"seed": 7})
    assert all_of(data.train, 12) != all_of(open_samples(other, corpus, scan=False).train, 12)


@pytest.mark.parametrize(("model", "objective"), [(T5, None), (T5, "prefix"), ({}, "prefix"), ({}, "span_corruption")])
def test_a_validation_reads_all_windows_and_what_is_left(
    corpus: Path, model: dict[str, Any], objective: str | None
) -> None:
    """The raw windows lie side by side; the last sample is made of the rest, and padded."""
    config = tiny(model=model, data={"objective": objective})
    valid = open_samples(config, corpus).valid
    windows = valid.windows  # type: ignore[attr-defined]
    lengths = [len(windows[n]) for n in range(len(windows))]
    assert sum(lengths) + (windows.part.tokens % windows.size == 1) == windows.part.tokens
    assert set(lengths[:-1]) == {windows.size}
    assert {key: value.shape for key, value in valid[0].items()} == {
        key: value.shape for key, value in valid[len(valid) - 1].items()
    }


@pytest.mark.parametrize("mixture", [False, True])
@pytest.mark.parametrize("objective", ["causal", "prefix", "span_corruption"])
def test_the_number_of_steps_changes_no_sample(
    corpus: Path, files: tuple[str, ...], objective: str, mixture: bool
) -> None:
    def read(steps: int) -> list[list[int]]:
        shares = (f"{corpus}=3", "sst2=1", "cb=1") if mixture else ()
        sections = {"data": {"objective": objective}, "train": {"steps": steps}, "model": {"seq_length": 80}}
        data = run_samples(mixed(corpus, files, shares, **sections), scan=False)
        return [torch.cat([value.flatten() for value in data.train[n].values()]).tolist() for n in range(12)]

    assert read(3) == read(500)


def test_a_task_is_trained_on_in_epochs(corpus: Path, files: tuple[str, ...]) -> None:
    data = run_samples(mixed(corpus, files, ("sst2",), model={"seq_length": 48}))
    assert [len(data.train), len(data.valid)] == [12, 2]
    first = [text(data, n) for n in range(5)]
    assert sorted(first) == [f"sst2 sentence: film {n}{('negative', 'positive')[n % 2]}" for n in range(5)]
    assert sorted(text(data, n) for n in range(5, 10)) == sorted(first)
    assert [text(data, n) for n in range(5, 10)] != first  # shuffled anew
    assert [text(data, n) for n in reversed(range(5))] == first[::-1]  # whatever was asked for before
    sample = data.train[0]
    labels = sample["labels"][sample["loss_mask"].bool()].tolist()
    assert data.tokenizer.decode(labels) in ("negative", "positive")
    assert labels[-1] == data.tokenizer.eod


@pytest.mark.parametrize("model", [T5, {"seq_length": 48}], ids=["t5", "gpt"])
def test_a_mixture_keeps_its_shares_under_every_layout(
    corpus: Path, files: tuple[str, ...], model: dict[str, Any]
) -> None:
    mixture = (f"{corpus}=2", "sst2=1", "cb=1")
    config = mixed(corpus, files, mixture, model=model, data={"objective": "span_corruption"})
    data = run_samples(config)
    keys = ["encoder_tokens", "tokens"] if "arch" in model else ["tokens"]
    read = [data.tokenizer.decode(data.train[n][keys[0]].tolist()) for n in range(12)]
    assert sum(one.startswith("sst2 ") for one in read) == sum(one.startswith("cb ") for one in read) == 3
    assert sum("film" in one for one in read[:4]) == 1
    assert [set(data.train[n]) for n in range(12)] == [set(data.train[0])] * 12
    again = run_samples(config, scan=False)
    assert again.fingerprint == data.fingerprint
    alone = torch.stack([again.train[n]["tokens"] for n in range(12)])
    for size in (1, 2):  # what the ranks of two data-parallel sizes read, put together
        ranks = (
            [list(micro_batches(data.train, 0, 12, 2, rank, size)) for rank in range(size)] if keys[1:] == [] else []
        )
        together = [batch.tokens for parts in zip(*ranks, strict=True) for batch in parts]
        assert not ranks or torch.equal(torch.cat(together), alone)


def test_what_is_left_out_or_cut_is_told(corpus: Path, tmp_path: Path) -> None:
    question = {"question": "is it so", "passage": "the cat sat on the mat " * 9, "label": "true"}
    rows = [question, {**question, "passage": "the cat"}, {**question, "label": None}]
    rows += [{**question, "question": "why " * 60}, {**question, "label": "No"}]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows[: 5 if split == "train" else 2])))
    config = mixed(corpus, (f"boolq={tmp_path}",), ("boolq",), model={"seq_length": 64})
    data = run_samples(config)
    assert data.notes == (
        "boolq, train: 1 of 5 rows have no label and are left out; 1 examples are left out: question or answer are too "
        "long; 2 of 3 examples have their passage cut (model.seq_length 64)",
        "boolq, valid: 1 of 2 examples have their passage cut (model.seq_length 64)",
    )
    assert run_samples(config, scan=False).notes == ()
    assert run_samples(config, scan=False).fingerprint == data.fingerprint
    read = sorted({text(data, n) for n in range(3)})
    assert [one.partition(" question: ")[2] for one in read] == ["is it soTrue", "is it soFalse", "is it soTrue"]
    learned = {
        data.tokenizer.decode(s["labels"][s["loss_mask"].bool()].tolist())
        for s in map(data.train.__getitem__, range(3))
    }
    assert learned == {"True", "False"}
    with pytest.raises(ConfigError, match=r"model\.seq_length=24: of 4 examples of boolq none fits"):
        run_samples(mixed(corpus, (f"boolq={tmp_path}",), ("boolq",)))


def test_a_run_whose_questions_were_cut_does_not_go_on_with_whole_ones() -> None:
    """Earlier versions cut the ends of inputs: where now the passage before them is cut, a run's data are others."""
    behind = example([Passage("the cat sat " * 9), "question: why"], "True", 1)
    at_end = example(["question: why", Passage("the cat sat " * 9)], "True", 1)
    for one, same in ((behind, False), (at_end, True)):
        assert (examples_sha256([one], Room(48, 16)) == examples_sha256([one], Room(480, 16))) is same


def test_a_class_that_does_not_fit_is_refused(corpus: Path, files: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"model\.decoder_seq_length=6: sst2 answers 'positive', \d+ tokens"):
        run_samples(mixed(corpus, files, ("sst2",), model={**T5, "seq_length": 48, "decoder_seq_length": 6}))


def test_weights_from_numbers_of_samples(corpus: Path, files: tuple[str, ...]) -> None:
    """Examples-proportional: 5 reviews to 3 pairs, until a cap of 3 makes them even."""
    steps = {"steps": 2, "global_batch_size": 8, "micro_batch_size": 8}
    model = {"seq_length": 48}
    for cap, shares in ((None, 10), (3, 8)):
        data = run_samples(mixed(corpus, files, ("sst2", "cb"), model=model, train=steps, data={"mixture_cap": cap}))
        assert sum(text(data, n).startswith("sst2") for n in range(16)) == shares


def test_another_tokenizer_or_too_few_tokens_are_refused(
    bpe: Tokenizer, corpus: Path, files: tuple[str, ...], prefix: Path
) -> None:
    with pytest.raises(DataError, match="not the tokenizer that made"):
        run_samples(mixed(corpus, files, ("sst2=1", f"{prefix}=1")))
    with pytest.raises(ConfigError, match=r"model\.vocab_size=270"):
        run_samples(mixed(corpus, files, ("sst2",), model={"vocab_size": 270}, data={"tokenizer": str(bpe.directory)}))
    with pytest.raises(ConfigError, match="has 0 sentinels"):
        open_samples(tiny(model=T5), prefix)
    with pytest.raises(ConfigError, match=r"model\.seq_length=4096: the train part .* needs 4096 for the objective"):
        open_samples(tiny(model={**T5, "seq_length": 4096}, data={"objective": "prefix"}), corpus)


def test_another_corpus_is_read_as_the_run_s_objective_reads_it(corpus: Path, with_sentinels: Tokenizer) -> None:
    samples, _ = open_corpus(tiny(model=T5), str(corpus), with_sentinels.directory)
    assert "encoder_tokens" in samples[0]
    plain, _ = open_corpus(tiny(), str(corpus), with_sentinels.directory)
    assert set(plain[0]) >= {"tokens", "labels", "loss_mask"}
