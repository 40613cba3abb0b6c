"""Loss, perplexity and bits per byte of a finished run, on one process."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F

from altup_moe.config.data_checks import is_corpus
from altup_moe.config.run_directory import tokenizer_dir
from altup_moe.inference.load_run import FinishedRun, load_run
from altup_moe.inference.logits import batch_logits
from altup_moe.inference.own_text import tokenised_text
from altup_moe.train.batches import SampleDataset, micro_batches
from altup_moe.train.mixture import run_samples
from altup_moe.train.samples import GivenStart, open_corpus
from altup_moe.train.step import Validation


@dataclass(frozen=True)
class Evaluation:
    """Figures of a run's newest checkpoint on held-out text.

    Args:
        corpus: what was read. samples: how many samples were read of the `available` ones.
        loss: mean in nats per token. perplexity: exp(loss). bits_per_byte: of UTF-8 text. tokens: labels that count.
        document_start: the tokens that documents begin with, "" for none; None where the tokenizer has none.
    """

    run: str
    step: int
    corpus: str
    samples: int
    available: int
    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    document_start: str | None = None


@torch.no_grad()
def evaluate_samples(run: FinishedRun, dataset: SampleDataset, count: int, byte_lengths: torch.Tensor) -> Validation:
    """The first `count` samples through the model. ``byte_lengths`` [V]: UTF-8 bytes of each token id."""
    device = run.model.device
    nats, tokens, text_bytes = 0.0, 0, 0
    for batch in micro_batches(dataset, 0, count, run.config.train.micro_batch_size, 0, 1):
        logits = batch_logits(run.model, batch.to(device))
        keep = batch.loss_mask.bool()
        losses = F.cross_entropy(logits.flatten(0, 1), batch.labels.to(device).flatten(), reduction="none")
        nats += float(losses.view_as(keep)[keep.to(device)].double().sum())
        tokens += int(keep.sum())
        text_bytes += int(byte_lengths[batch.labels[keep]].sum())
    return Validation(nats / tokens, nats / math.log(2) / max(text_bytes, 1), tokens)


def evaluate_run(
    run: FinishedRun, corpus: str | None = None, samples: int | None = None, text_key: str = "text"
) -> Evaluation:
    """Evaluate a finished run on text.

    Args:
        corpus: a named corpus, a prefix of prepared data, or text as it is (a file, a directory or a glob, tokenised
            with the run's tokenizer), which are not split; None is the validation part of the run's own data, as many
            samples of it as the training's validations read.
        samples: how many to read; all where there are fewer.
        text_key: column of the text in jsonl and parquet.
    """
    config = run.config
    if corpus is not None and not is_corpus(corpus):
        with tokenised_text(config, corpus, text_key, tokenizer_dir(config.log.run_dir)) as (prefix, left_out):
            for line in left_out.lines():
                print(line, file=sys.stderr, flush=True)
            return replace(evaluate_run(run, str(prefix), samples), corpus=corpus)
    if corpus is None:
        data = run_samples(config)
        dataset, count, name = data.valid, data.valid_count(config), f"{config.data.corpus} (validation part)"
        lengths = data.byte_lengths
    else:
        dataset, lengths = open_corpus(config, corpus, tokenizer_dir(config.log.run_dir))
        count, name = len(dataset), corpus
    read = min(samples or count, len(dataset))
    found = evaluate_samples(run, dataset, read, lengths)
    return Evaluation(
        run=config.log.run_dir,
        step=run.step,
        corpus=name,
        samples=read,
        available=len(dataset),
        loss=found.loss,
        perplexity=found.perplexity,
        bits_per_byte=found.bits_per_byte,
        tokens=found.tokens,
        document_start=_document_start(run, dataset),
    )


def evaluate_command(
    run_dir: Path, corpus: str | None, samples: int | None, as_json: bool, text_key: str = "text"
) -> int:
    """`altup-moe evaluate`: print the figures of the newest checkpoint (`evaluate_run`)."""
    e = evaluate_run(load_run(run_dir), corpus, samples, text_key)
    if samples is not None and samples > e.available:
        print(f"samples={samples}: {e.corpus} has {e.available}; all are read", file=sys.stderr, flush=True)
    if as_json:
        figures = {key: value for key, value in asdict(e).items() if key != "available"}
        print(json.dumps({key: value for key, value in figures.items() if value is not None}))
        return 0
    start = "" if e.document_start is None else f" | documents begin with {e.document_start or 'nothing'}"
    print(
        f"{run_dir} step {e.step} on {e.corpus}, {e.samples:,} of {e.available:,} samples: "
        f"loss {e.loss:.4f} nats/token | "
        f"perplexity {e.perplexity:.2f} | bits/byte {e.bits_per_byte:.4f} | {e.tokens:,} tokens{start}"
    )
    return 0


def _document_start(run: FinishedRun, dataset: SampleDataset) -> str | None:
    """The tokens that documents begin with, where the run's tokenizer has some; "" if these documents have none."""
    if not run.tokenizer.template.before:
        return None
    ids = dataset.start if isinstance(dataset, GivenStart) else ()
    return " ".join(run.tokenizer.backend.id_to_token(i) for i in ids)
