"""Fetch and tokenise the data of rows in one process, before several training processes want it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from altup_moe.config import RunConfig
from altup_moe.config.load import load_config
from altup_moe.data.prepare import prepare_named
from altup_moe.data.recipes import wants_sentinels
from altup_moe.study.study_directory import RowDirectory


def prepare_rows(roots: Sequence[Path]) -> int:
    """Prepare the data of the rows in these directories. Whether samples fit a row is checked when it is trained."""
    for root in roots:
        _prepare(load_config(RowDirectory(root).config))
    return 0


def _prepare(config: RunConfig) -> None:
    model, data = config.model, config.data
    if data.mixture:
        # Reading the tasks fetches them.
        from altup_moe.train.mixture import run_samples

        run_samples(config, scan=False)
        return
    assert data.cache is not None
    sentinels = data.sentinels if wants_sentinels(model, data) else 0
    cache, special = Path(data.cache), data.add_special_tokens
    prepare_named(data.corpus, model.vocab_size, data.tokenizer, cache, sentinels, special)
