"""Texts and answers to tasks from the weights of a run as it trains: when they are due, and the form of the results.

What generates is `altup_moe.inference.in_training`. That package stands above this one, and imports transformers: it
is loaded by its name, where a configuration asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from altup_moe.altup.lazy import load_object
from altup_moe.config import RunConfig

if TYPE_CHECKING:
    from altup_moe.data.tokenizer import Tokenizer
    from altup_moe.parallel.topology import Topology

_MODULE = "altup_moe.inference.in_training"


@dataclass(frozen=True)
class GeneratedText:
    """A prompt of log.sample_prompts, and what the model added to it (or an encoder-decoder answered)."""

    prompt: str
    text: str


@dataclass(frozen=True)
class Generated:
    """What a step's weights have generated; mutable while it is made.

    ``scores``: metrics in percent by ``eval/TASK/METRIC``.
    """

    texts: list[GeneratedText] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)


class TrainingGenerator(Protocol):
    """Generates with the weights of a run that trains, which it leaves as it is: random states too."""

    def generate(self, chunks: list[Any], step: int, due: Due, stopping: Callable[[], bool]) -> Generated:
        """What is due. Collective; rank 0 gets the results, the other ranks nothing.

        Args:
            chunks: this rank's model chunks.
            stopping: whether this rank has heard a signal: what is not finished then is left out.
        """


@dataclass(frozen=True)
class Due:
    """Whether texts of log.sample_interval, or answers to train.eval_tasks, are due."""

    texts: bool = False
    tasks: bool = False

    def __bool__(self) -> bool:
        return self.texts or self.tasks


def generates(config: RunConfig) -> bool:
    """Whether a run generates while it trains."""
    return config.log.sample_interval is not None or bool(config.train.eval_tasks)


def due_after(config: RunConfig, step: int, last: int) -> Due:
    """What is due after a step; `last` is the step with which the run ends. Tasks go with validations."""
    sampled, evaluated = config.log.sample_interval, config.train.eval_interval
    return Due(
        texts=sampled is not None and (step == last or step % sampled == 0),
        tasks=bool(config.train.eval_tasks) and (step == last or (evaluated > 0 and step % evaluated == 0)),
    )


def prepare_generation(config: RunConfig, tokenizer: Tokenizer) -> Any:
    """Prompts and examples of a checked configuration; None if the run generates nothing. Rank 0 alone calls it.

    Raises:
        UserError: a prompt or an answer does not fit into the model, or a task's data cannot be loaded.
    """
    return load_object(f"{_MODULE}:prepare_inputs")(config, tokenizer) if generates(config) else None


def open_generator(config: RunConfig, topology: Topology, inputs: Any) -> TrainingGenerator | None:
    """The generator of a run; None if it generates nothing. Every rank calls it.

    Args:
        inputs: on rank 0 what `prepare_generation` returned.
    """
    return load_object(f"{_MODULE}:InTraining")(config, topology, inputs) if generates(config) else None
