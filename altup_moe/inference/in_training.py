"""Generate with the weights of a run that trains: texts of log.sample_interval, answers to train.eval_tasks.

The weights are gathered into the plain reference model on rank 0, which generates as `altup-moe generate` and
`altup-moe evaluate --tasks` do from the checkpoint of that step, under every layout. The alternatives would cost more:
Megatron's chunks have no cache of keys and values, and would need one that knows streams, stages and strided layers; a
checkpoint would have to be written, published and read first, and steps between two saves could not be looked at.

Cost: rank 0 keeps the whole model in fp32 (in the host's memory; while it generates on the GPU, if it fits there), and
the other ranks wait. They wait in steps of one prompt or one batch of answers, so that no collective runs into its time
limit, and a signal ends the work between two of them.

Training is the same with and without it, bit for bit: weights are only read, and all random states are put back.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from altup_moe.checkpoint.gather import WeightGatherer
from altup_moe.checkpoint.state import local_tensors
from altup_moe.config import ConfigError, RunConfig, UserError
from altup_moe.config.data_checks import task_directories
from altup_moe.data.prepare import data_cache
from altup_moe.data.special_tokens import prompt_format
from altup_moe.data.tasks.fit import check_classes
from altup_moe.data.tasks.records import Example
from altup_moe.data.tasks.registry import TASKS, load_task
from altup_moe.data.tokenizer import Tokenizer
from altup_moe.inference.answers import answers, compared, questions
from altup_moe.inference.generate import continuation, room_in
from altup_moe.inference.load_run import FinishedRun, generating_model
from altup_moe.model.build import named_tensors
from altup_moe.parallel.control_collectives import any_rank
from altup_moe.parallel.rng import rng_state, set_rng_state
from altup_moe.parallel.topology import Topology
from altup_moe.train.generation import Due, Generated, GeneratedText

TOP_P = 0.95
SEED = 0
"""As `altup-moe generate` has them: from a step's checkpoint it gives the same text."""
BATCH_SIZE = 16
"""Examples answered at once, as in `altup-moe evaluate`."""
SHOWN = 60
"""Characters of a prompt in a message."""
ROOM = 1.25
"""Free memory of a GPU over the model's size, from which on it generates there."""


@dataclass(frozen=True)
class GenerationInputs:
    """What rank 0 generates from. ``examples``: by task, those that are scored."""

    tokenizer: Tokenizer
    prompts: Sequence[str]
    examples: dict[str, list[Example]]


def prepare_inputs(config: RunConfig, tokenizer: Tokenizer) -> GenerationInputs:
    """Read prompts and tasks, and check that they fit into the model.

    Raises:
        ConfigError: a prompt, the name of a class or all examples of a task are too long. UserError: a file or a task's
            data cannot be read.
    """
    prompts = read_prompts(config) if config.log.sample_interval is not None else []
    rules = prompt_format(config.model, config.data, tokenizer)
    for prompt in prompts:
        try:
            room_in(config.model, rules.ids(prompt, tokenizer))
        except UserError as error:
            shown = textwrap.shorten(prompt, SHOWN, placeholder=" ...")
            raise ConfigError("log.sample_prompts", shown, str(error).removeprefix("prompt: ")) from None
    known, cache = task_directories(config.data.task_files), data_cache(config)
    examples = {}
    for name in config.train.eval_tasks:
        check_classes(TASKS[name], tokenizer, config.model)
        loaded = load_task(TASKS[name], "validation", known, cache)
        scored = [example for example in loaded.examples if example.evaluates][: config.train.eval_task_limit]
        questions(scored, tokenizer, config.model)
        examples[name] = scored
    return GenerationInputs(tokenizer, prompts, examples)


def read_prompts(config: RunConfig) -> list[str]:
    """log.sample_prompts and the lines of log.sample_prompts_file.

    Raises:
        UserError: the file cannot be read. ConfigError: there is no prompt.
    """
    prompts, file = list(config.log.sample_prompts), config.log.sample_prompts_file
    if file is not None:
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: {getattr(error, 'strerror', None) or error}") from None
        prompts += [line for line in text.splitlines() if line.strip()]
    if not prompts:
        raise ConfigError("log.sample_prompts_file", file, "holds no prompt; one in each line would fit")
    return prompts


class _StoppedError(Exception):
    """A rank has heard a signal."""


class InTraining:
    """A `train.generation.TrainingGenerator`.

    Args:
        inputs: what `prepare_inputs` returned on rank 0; not read on the other ranks.
    """

    def __init__(self, config: RunConfig, topology: Topology, inputs: GenerationInputs | None) -> None:
        self.config, self.topology = config, topology
        self._gatherer = WeightGatherer(topology)
        self._inputs, self._model = inputs, None
        if topology.is_first:
            assert inputs is not None
            # Built now: a machine without the memory for it says so before the first step.
            with unchanged_random_states():
                self._model = generating_model(config, inputs.tokenizer, inputs.tokenizer.directory).eval()

    def generate(self, chunks: list[Any], step: int, due: Due, stopping: Callable[[], bool]) -> Generated:
        """What is due, from the weights of a step. See `TrainingGenerator`."""
        with unchanged_random_states():
            targets = None if self._model is None else self._model.state_dict()
            self._gatherer.gather(local_tensors(named_tensors(chunks, self.config, self.topology), None), targets)
            if not self.topology.is_first:
                while self._others_work(False, stopping):
                    pass
                return Generated()
            result = Generated()
            try:
                self._work(result, step, due, stopping)
                self._others_work(False, stopping)
            except _StoppedError:
                pass
            return result

    def _others_work(self, working: bool, stopping: Callable[[], bool]) -> bool:
        """Whether rank 0 has more to do and no rank has heard a signal. Collective."""
        more, stopped = any_rank([working, stopping()], self.topology.device)
        return more and not stopped

    def _work(self, result: Generated, step: int, due: Due, stopping: Callable[[], bool]) -> None:
        """Add to `result` what is due. Raises `_StoppedError` after a signal."""

        def advance() -> None:
            if not self._others_work(True, stopping):
                raise _StoppedError

        model, inputs = self._model, self._inputs
        assert model is not None
        assert inputs is not None
        log, scores = self.config.log, result.scores
        try:
            run = FinishedRun(self.config, model.to(_device(model, self.topology.device)), inputs.tokenizer, step)
            for prompt in inputs.prompts if due.texts else ():
                text = continuation(run, prompt, log.sample_tokens, log.sample_temperature, TOP_P, SEED)
                result.texts.append(GeneratedText(prompt, text))
                advance()
            for name, examples in inputs.examples.items() if due.tasks else ():
                found = answers(run, examples, BATCH_SIZE, advance)
                metrics = compared(TASKS[name], examples, found.texts).metrics
                scores.update({f"eval/{name}/{metric}": value for metric, value in metrics.items()})
        finally:
            model.to("cpu")
            if self.topology.device.type == "cuda":
                torch.cuda.empty_cache()


def _device(model: torch.nn.Module, device: torch.device) -> torch.device:
    """Where to generate: on the rank's GPU if the model fits beside what is there, else on the CPU."""
    if device.type != "cuda":
        return device
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    free, _ = torch.cuda.mem_get_info(device)
    return device if free > ROOM * size else torch.device("cpu")


@contextmanager
def unchanged_random_states() -> Iterator[None]:
    """Put the random states of this process back: torch's, Megatron's, numpy's and Python's."""
    states, python, arrays = rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        set_rng_state(states)
        random.setstate(python)
        np.random.set_state(arrays)
