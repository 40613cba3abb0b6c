"""Loss and bits per byte of a finished run equal the sums done by hand; the command reads a directory and prints."""

from __future__ import annotations

import gzip
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pyarrow  # type: ignore[import-untyped]
import pytest
import torch
from pyarrow import parquet
from torch import Tensor

from altup_moe.cli import main
from altup_moe.data.document import Document
from altup_moe.data.prepare import prepare_tokens
from altup_moe.data.tokenizer import Tokenizer
from altup_moe.inference.evaluate import evaluate_command, evaluate_samples
from altup_moe.train.samples import open_corpus, open_samples
from altup_moe.train.step import Validation
from tests.unit.inference.alike import llama
from tests.unit.train.runs import TEXT, finished, tiny, write_run


class Random:
    """Random samples, each with some labels that do not count."""

    def __init__(self, vocab_size: int, length: int) -> None:
        generator = torch.Generator().manual_seed(4)
        self.ids = torch.randint(0, vocab_size, (16, length + 1), generator=generator)
        self.mask = (torch.rand(16, length, generator=generator) < 0.7).float()

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        return {"tokens": self.ids[n, :-1], "labels": self.ids[n, 1:], "loss_mask": self.mask[n]}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_equals_the_sums_done_by_hand(count: int, bpe: Tokenizer) -> None:
    """Samples one at a time: neither batches, nor what fills the last one, nor a capacity changes anything."""
    config = tiny()
    run, dataset = finished(config, bpe), Random(config.model.vocab_size, config.model.seq_length)
    lengths = torch.randint(0, 9, (config.model.vocab_size,))
    nats, tokens, text_bytes = 0.0, 0, 0
    with torch.no_grad():
        for n in range(count):
            sample = dataset[n]
            log_probs = run.model(sample["tokens"][None]).logits[0].double().log_softmax(-1)
            for position, label in enumerate(sample["labels"].tolist()):
                if sample["loss_mask"][position]:
                    nats -= float(log_probs[position, label])
                    tokens += 1
                    text_bytes += int(lengths[label])
    got = evaluate_samples(run, dataset, count, lengths)
    assert got.tokens == tokens
    assert got.loss == pytest.approx(nats / tokens, rel=1e-6)
    assert got.bits_per_byte == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-6)
    assert got.perplexity == pytest.approx(math.exp(nats / tokens), rel=1e-5)


def test_perplexity_of_a_hopeless_model_is_a_number() -> None:
    assert math.isfinite(Validation(1e6, 1.0, 1).perplexity)


def test_command_prints_what_the_directory_holds(
    bpe: Tokenizer, prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"corpus": str(prefix), "valid_fraction": 0.3, "shuffle": "epoch"}
    config = tiny(data=data, train={"eval_samples": 5})
    run = write_run(tmp_path / "run", config, bpe)
    held = open_samples(config, prefix)
    expected = evaluate_samples(run, held.valid, 5, held.byte_lengths)
    before = sorted((tmp_path / "run").rglob("*"))

    assert evaluate_command(tmp_path / "run", None, None, True) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["loss"] == expected.loss
    assert figures["bits_per_byte"] == expected.bits_per_byte
    assert (figures["step"], figures["tokens"]) == (3, expected.tokens)
    assert figures["corpus"] == f"{prefix} (validation part)"

    assert evaluate_command(tmp_path / "run", None, 2, False) == 0
    fewer = evaluate_samples(run, held.valid, 2, held.byte_lengths)
    line = f"step 3 on {prefix} (validation part), 2 of {len(held.valid)} samples: loss {fewer.loss:.4f} nats/token"
    assert line in capsys.readouterr().out
    assert evaluate_command(tmp_path / "run", None, 10_000, True) == 0
    said = capsys.readouterr()
    assert said.err == f"samples=10000: {prefix} (validation part) has {len(held.valid)}; all are read\n"
    every = evaluate_samples(run, held.valid, len(held.valid), held.byte_lengths)
    assert json.loads(said.out)["tokens"] == every.tokens
    assert sorted((tmp_path / "run").rglob("*")) == before


@pytest.mark.parametrize("texts", [[TEXT], [TEXT[:50], "a", TEXT, TEXT[7:100], "b\n"]], ids=["one", "short"])
def test_every_token_but_the_first_is_counted_once(
    texts: list[str], bpe: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An independent sum: documents end to end, every token predicted from the up to seq_length ones of its sample."""
    prefix, config = tmp_path / "tokens", tiny(moe={"capacity_factor": None})
    prepare_tokens([Document(str(n), text) for n, text in enumerate(texts)], bpe, prefix, "mine")
    run = write_run(tmp_path / "run", config, bpe)
    order = np.arange(len(texts))
    np.random.RandomState(config.train.seed).shuffle(order)
    ids = torch.tensor([token for n in order for token in [*bpe.encode(texts[n]), bpe.eod]])
    nats, length = 0.0, config.model.seq_length
    with torch.no_grad():
        for start in range(0, len(ids) - 1, length):
            window = ids[start : start + length + 1]
            log_probs = run.model(window[None, :-1]).logits[0].double().log_softmax(-1)
            nats -= float(log_probs.gather(1, window[1:, None]).sum())
    assert evaluate_command(tmp_path / "run", str(prefix), None, True) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["tokens"] == len(ids) - 1
    assert figures["loss"] == pytest.approx(nats / (len(ids) - 1), rel=1e-6)
    text_bytes = sum(len(text.encode()) for text in texts) - len(bpe.decode([int(ids[0])]).encode())
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-6)


def test_command_reads_all_of_another_corpus(
    bpe: Tokenizer, prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run", tiny(), bpe)
    assert evaluate_command(tmp_path / "run", str(prefix), None, True) == 0
    figures = json.loads(capsys.readouterr().out)
    length = tiny().model.seq_length
    part = open_samples(tiny(data={"valid_fraction": 0.3}), prefix).valid
    assert figures["corpus"] == str(prefix)
    assert figures["tokens"] > length * len(part)
    # Long samples mean few of them; more than there are is all of them.
    assert evaluate_command(tmp_path / "run", str(prefix), 10**6, True) == 0
    assert json.loads(capsys.readouterr().out) == figures


@pytest.mark.parametrize("kind", ["held.txt", "held.txt.gz", "held.jsonl", "held.parquet", "folder", "held*.txt"])
def test_text_is_read_as_it_is_and_counted_like_prepared_data(
    kind: str, bpe: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit what the prepared prefix gives; nothing is left behind."""
    texts = [TEXT[:90], TEXT, TEXT[11:70]]
    given = write_texts(tmp_path, kind, texts)
    write_run(tmp_path / "run", tiny(), bpe)
    words = ["prepare-data", given, str(tmp_path / "tokens"), "--tokenizer", str(tmp_path / "run" / "tokenizer")]
    assert main([*words, "--text-key", "body"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "run"), "--corpus", str(tmp_path / "tokens"), "--json"]) == 0
    prepared = json.loads(capsys.readouterr().out)
    before = sorted(tmp_path.rglob("*"))
    assert main(["evaluate", str(tmp_path / "run"), "--corpus", given, "--text-key", "body", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {**prepared, "corpus": given}
    assert shown.err == ""
    assert sorted(tmp_path.rglob("*")) == before
    assert not list(Path(tempfile.gettempdir()).glob("altup-moe-*/tokens.bin"))


def write_texts(directory: Path, kind: str, texts: list[str]) -> str:
    """Documents as a kind of file or files; what names them."""
    file = directory / kind
    if kind == "folder" or "*" in kind:
        folder = file if kind == "folder" else directory
        folder.mkdir(exist_ok=True)
        for number, text in enumerate(texts):
            (folder / f"held{number}.txt").write_text(text)
    elif kind.endswith(".gz"):
        file.write_bytes(gzip.compress("".join(texts).encode()))
    elif kind.endswith(".jsonl"):
        file.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    elif kind.endswith(".parquet"):
        parquet.write_table(pyarrow.table({"body": texts}), file)
    else:
        file.write_text("".join(texts))
    return str(file)


@pytest.mark.slow
def test_an_import_is_evaluated_with_its_own_document_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loss that transformers' model has on documents as transformers' tokenizer writes them, the BOS given."""
    asked = llama(tmp_path)
    texts = [f"the cat saw {n} dogs and ran home. " * 9 for n in range(9)]
    prepare_tokens([Document("d", text) for text in texts], asked.run.tokenizer, tmp_path / "d", "mine")
    capsys.readouterr()
    assert evaluate_command(Path(asked.run.config.log.run_dir), str(tmp_path / "d"), None, True) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["document_start"] == "<s>"

    model, tokenizer = asked.theirs()
    documents = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    windows = open_corpus(asked.run.config, str(tmp_path / "d"), asked.run.tokenizer.directory)[0]
    nats = count = 0
    for n in range(len(windows)):
        row = windows[n]
        ids = row["tokens"].tolist()
        for at in (n for n, token in enumerate(ids) if token == tokenizer.bos_token_id):
            assert any(ids[at : at + len(one)] == one[: len(ids) - at] for one in documents)
        keep = row["loss_mask"].bool()
        assert not bool((row["labels"][keep] == tokenizer.bos_token_id).any())
        with torch.no_grad():
            log_probs = model(row["tokens"][None]).logits[0].double().log_softmax(-1)
        nats -= float(log_probs.gather(1, row["labels"][:, None])[keep].sum())
        count += int(keep.sum())
    assert figures["tokens"] == count == sum(len(one) - 1 for one in documents)  # all but each BOS, once
    assert figures["loss"] == pytest.approx(nats / count, rel=1e-5)
