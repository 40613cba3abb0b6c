"""Use a trained model on one process: evaluate it, let it write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from altup_moe.config.expected_run import check_run
from altup_moe.config.ranges import COUNT
from altup_moe.config.sampling import check_sampling
from altup_moe.data.sources import check_text_corpus

if TYPE_CHECKING:
    from altup_moe.inference.evaluate import Evaluation
    from altup_moe.inference.load_run import FinishedRun


def load_model(run: str | Path) -> FinishedRun:
    """The newest checkpoint of a run as a plain PyTorch model on one process, whatever layout trained it.

    Args:
        run: run directory (log.run_dir).

    Returns:
        A record: ``model`` (a transformers model in evaluation mode, on a GPU if there is one), ``tokenizer``,
        ``config``, ``step``. Pass it to `evaluate` and `generate` to load it once.

    Raises:
        ConfigError: not a run directory. UserError: it has no checkpoint yet. DataError: one that is damaged.

    Examples:
        >>> model = load_model("runs/quickstart")  # doctest: +SKIP
        >>> generate(model, "The for statement")  # doctest: +SKIP
    """
    check_run(Path(run), "evaluate", key="run")
    from altup_moe.inference.load_run import load_run

    return load_run(Path(run))


def evaluate(run: str | Path | FinishedRun, corpus: str | None = None, samples: int | None = None) -> Evaluation:
    """Loss, perplexity and bits per byte of a run's newest checkpoint.

    Args:
        run: run directory, or what `load_model` returned.
        corpus: what `altup-moe evaluate --corpus` takes; None is the validation part of the run's own data.
        samples: samples to read at most; None reads all of a corpus, and train.eval_samples of the run's own.

    Returns:
        A record: loss in nats per token, perplexity, bits_per_byte, tokens (labels that count), samples, step.

    Raises:
        ConfigError: an unknown corpus, or samples below 1. UserError, DataError: as `load_model`.

    Examples:
        >>> evaluate("runs/quickstart").bits_per_byte  # doctest: +SKIP
        2.41
    """
    if corpus is not None:
        check_text_corpus("corpus", corpus)
    if samples is not None:
        COUNT.check("samples", samples)
    model = load_model(run) if isinstance(run, str | Path) else run
    from altup_moe.inference.evaluate import evaluate_run

    return evaluate_run(model, corpus, samples)


def generate(
    run: str | Path | FinishedRun,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> str:
    """Text that a run's newest checkpoint adds to a prompt (an encoder-decoder: its answer); same seed, same text.

    Args:
        run: run directory, or what `load_model` returned.
        max_new_tokens: at most; fewer where the model has no more room.
        temperature: divides the logits, 1e-6 to 1e30; 0 always takes the likeliest token.
        top_p: draw from the likeliest tokens that together have this probability, above 0 and at most 1.

    Returns:
        The new text alone, without the prompt.

    Raises:
        ConfigError: an option out of range.
        UserError: the prompt does not fit into the model's length; and all that `load_model` raises.

    Examples:
        >>> generate("runs/quickstart", "The for statement", temperature=0)  # doctest: +SKIP
        ' is used to iterate'
    """
    check_sampling(max_new_tokens, temperature, top_p, seed)
    model = load_model(run) if isinstance(run, str | Path) else run
    from altup_moe.inference.generate import continuation

    return continuation(model, prompt, max_new_tokens, temperature, top_p, seed)
