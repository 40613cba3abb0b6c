"""A run that your own code steps."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import nan
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from altup_moe.api.configuration import check_config
from altup_moe.config import ConfigError, RunConfig, UserError
from altup_moe.config.checks import num_microbatches
from altup_moe.config.run_directory import metrics_file
from altup_moe.parallel.start_meeting import start_meeting

if TYPE_CHECKING:
    import torch

    from altup_moe.checkpoint.saver import Saved
    from altup_moe.data.tokenizer import Tokenizer
    from altup_moe.parallel.topology import Topology
    from altup_moe.train.batches import Batch, SampleDataset
    from altup_moe.train.engine import Engine
    from altup_moe.train.log_files import JsonLines
    from altup_moe.train.metrics import StepMetrics
    from altup_moe.train.resume import ResumePoint
    from altup_moe.train.run import Run
    from altup_moe.train.step import Validation

_ENVIRONMENT = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"),
    *("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_FX_GRAPH_CACHE", "TORCHINDUCTOR_AUTOGRAD_CACHE"),
)
"""Variables that opening a session may set; closing it sets them back."""


def session(config: RunConfig, *, data: bool = True, timeout_seconds: float = 600.0) -> Session:
    """A run for your own loop: process groups, model, optimizer, learning-rate schedule and data.

    It opens in a ``with`` block (or by `Session.open`) and closes at its end, whatever happens inside: then no process
    group and no thread of it is left. One process needs no launcher; under torchrun (or `altup-moe launch`) every rank
    runs the same code; a torch.distributed world that you have started is used, and stays.

    It goes on from the newest checkpoint of log.run_dir, as the command does (checkpoint.resume). Rank 0 writes
    config.yaml, the tokenizer and metrics.jsonl there, so that `evaluate`, `generate` and `altup-moe show` can read it.

    Args:
        config: of `load_config`.
        data: False opens no corpus: every batch is yours (`Session.step`), and so is the tokenizer.
        timeout_seconds: how long a collective operation may wait for the other ranks.

    Raises:
        ConfigError, DataError: on opening, a value that does not fit, damaged data or a damaged checkpoint.
        UserError: another session is open in this process, or another run works in log.run_dir.

    Examples:
        >>> with session(load_config("quickstart", {"parallel.expert": 1})) as run:  # doctest: +SKIP
        ...     losses = [run.step().loss for _ in range(10)]
    """
    return Session(config, data=data, timeout_seconds=timeout_seconds)


def next_token_batch(tokens: torch.Tensor) -> Batch:
    """One micro-batch of a decoder-only model: every token is the label of the one before it.

    Args:
        tokens: ids, integers [B, S + 1]; B = train.micro_batch_size, S = model.seq_length.

    Returns:
        `Batch` with tokens and labels int64 [B, S], and a loss mask of ones, float32 [B, S].

    Raises:
        ValueError: not two dimensions, or fewer than two tokens.

    Examples:
        >>> import torch
        >>> next_token_batch(torch.arange(10).view(2, 5)).labels.tolist()
        [[1, 2, 3, 4], [6, 7, 8, 9]]
    """
    import torch

    from altup_moe.train.batches import Batch

    if tokens.dim() != 2 or tokens.shape[1] < 2:
        raise ValueError(f"tokens has the shape {list(tokens.shape)}; [B, S + 1] with S >= 1 would fit")
    ids = tokens.long()
    return Batch(ids[:, :-1], ids[:, 1:], torch.ones(ids.shape[0], ids.shape[1] - 1))


class Session:
    """A run that is open in this process, made by `session`. All ranks call its methods together, in the same order.

    Sizes: a step has train.global_batch_size samples. This rank's part is `micro_batches` micro-batches of
    train.micro_batch_size samples each, of model.seq_length tokens.

    Examples:
        >>> with session(config) as run:  # doctest: +SKIP
        ...     record = run.step([next_token_batch(my_tokens) for _ in range(run.micro_batches)])
        ...     run.save()
    """

    def __init__(self, config: RunConfig, *, data: bool = True, timeout_seconds: float = 600.0) -> None:
        """See `session`."""
        self._asked, self._data, self._timeout = config, data, timeout_seconds
        self._stack: ExitStack | None = None
        self._run: Run | None = None
        self._lines: JsonLines | None = None

    def open(self) -> Session:
        """Start it without a ``with`` block, as in a notebook; `close` ends it. Raises as `session`."""
        if self._stack is not None:
            raise UserError("the session is open already")
        with start_meeting() as meeting, warnings.catch_warnings(), ExitStack() as stack:
            with meeting.telling():
                check_config(self._asked)
                # What Megatron says at import of libraries that are not there.
                warnings.filterwarnings("ignore", module=r"megatron\.")
                from altup_moe.parallel.topology import layout_exists, topology
                from altup_moe.train import run as parts

                if layout_exists():
                    raise UserError("a session, or a layout of Megatron's, is open in this process; close it first")
                parts.check_packages(self._asked)
                stack.enter_context(_environment_kept())
                stack.enter_context(parts.run_lock(self._asked))
                prepared = parts.prepare_run(self._asked, meeting, self._data)
            topo = stack.enter_context(topology(prepared.config.parallel, self._timeout, meeting.world_store))
            with meeting.telling():
                run, resume = parts.start_run(prepared, topo)
            stack.callback(self._close_lines)
            self._write_from(run, resume)
            self._run, self._stack = run, stack.pop_all()
        return self

    def close(self) -> None:
        """Finish a save under way and take everything down. A closed session may be opened again."""
        self.__exit__(None, None, None)

    def __enter__(self) -> Session:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stack, self._stack = self._stack, None
        run, self._run = self._run, None
        if stack is None or run is None:
            return
        try:
            if error is None:
                run.saver.conclude()
                run.profile.close()
        finally:
            # After a failure ranks no longer act together: no collective operation from here on.
            run.saver.abandon()
            # The model goes before its process groups do.
            del run
            stack.__exit__(kind, error, trace)

    def step(
        self, batches: Sequence[Batch | Mapping[str, torch.Tensor]] | None = None, *, validate: bool = False
    ) -> StepMetrics:
        """Take one optimizer step: forward, backward, reduce, clip, update. The record also goes to metrics.jsonl.

        The gradient is that of the mean loss over all labels of the step, whatever rank or micro-batch holds them. A
        step with a non-finite loss or gradient changes nothing (`StepMetrics.skipped_steps` counts it).

        Args:
            batches: this rank's `micro_batches` micro-batches, each a `Batch` or a mapping of its tensors: tokens and
                labels int64 [B, S], loss_mask float32 [B, S] (1 where the label counts; all ones if it is missing).
                None reads the run's own data.
            validate: also measure the loss on held-out samples after the step (`StepMetrics.valid_loss`).

        Returns:
            The step's record, the same on every rank: losses in nats per token, seconds, tokens a second.

        Raises:
            ConfigError: train.steps are done. ValueError: batches of another number or shape, or none without data.
            RuntimeError: train.max_skipped or train.on_spike stop ends the run (`train.guards.after_skip.Diverged`).
        """
        from altup_moe.train.guards.after_skip import after_skip
        from altup_moe.train.run import take_step

        run = self._opened()
        if run.step >= run.config.train.steps:
            raise ConfigError("train.steps", run.config.train.steps, "all of them are done; a larger number would fit")
        if batches is None or validate:
            self._need_data(run)
        record = take_step(run, None if batches is None else self._checked(run, batches), validate)
        if self._lines is not None:
            self._lines.log(record)
        if run.last is not None and run.last.skipped and (point := after_skip(run)):
            self._write_from(run, point)
        return record

    def batches(self, dataset: SampleDataset) -> list[Batch]:
        """This rank's micro-batches of the next step, cut from a data set of your own.

        Args:
            dataset: ``dataset[n]`` is sample n, a mapping with tokens and labels int64 [S] and loss_mask float32 [S].
                Step k (from 0) reads samples k * train.global_batch_size and on, each once over all ranks.

        Returns:
            `micro_batches` of them; pass them to `step`.
        """
        from altup_moe.train.run import step_batches

        return step_batches(self._opened(), dataset)

    def validate(self, dataset: SampleDataset | None = None, samples: int | None = None) -> Validation:
        """Mean loss in nats per token and bits per byte on held-out samples; no weight changes.

        Args:
            dataset: as in `batches`; None is the run's own held-out part.
            samples: how many to read; needed with a data set of your own, else train.eval_samples.

        Returns:
            A record with loss, bits_per_byte (NaN without the run's data: bytes of tokens are not known), tokens.

        Raises:
            ValueError: no data, or a data set without a number of samples.
        """
        import torch

        from altup_moe.train.step import validate

        run = self._opened()
        if dataset is None:
            self._need_data(run)
            assert run.samples is not None
            dataset, samples = run.samples.valid, samples or run.samples.valid_count(run.config)
        if not samples:
            raise ValueError("samples: say how many of your own data set to read")
        lengths = torch.zeros(run.config.model.vocab_size) if run.samples is None else run.samples.byte_lengths
        found = validate(run.engine.chunks, dataset, samples, lengths, run.config, run.topology)
        return found if run.samples is not None else replace(found, bits_per_byte=nan)

    def save(self, *, wait: bool = True) -> Saved | None:
        """Save a checkpoint of the present step into log.run_dir: weights, optimizer, counters, random states.

        Args:
            wait: False trains on while it is written; the next `save`, or closing, sees it through.

        Returns:
            Its directory, bytes and seconds; None without waiting.

        Raises:
            UserError: the disk is full or cannot be written; the checkpoint before it stays.
        """
        from altup_moe.train.run import start_save

        run = self._opened()
        run.saver.conclude()
        start_save(run)
        return run.saver.conclude() if wait else None

    def load(self, path: str | Path, *, weights_only: bool = False) -> int:
        """Load a checkpoint that any layout has written.

        Args:
            path: a checkpoint, or a run directory (its newest one).
            weights_only: leave optimizer, schedule and counters as they are.

        Returns:
            Steps done: the checkpoint's, or with weights_only those of this session.

        Raises:
            ConfigError: of another model or schedule. DataError: damaged. UserError: there is none.
        """
        from altup_moe.train.resume import check_bytes, point_at
        from altup_moe.train.run import restore_run

        run = self._opened()
        run.saver.conclude()
        point = point_at(run.config, path, weights_only)
        check_bytes(point, run.topology)
        restore_run(run, point)
        if not weights_only:
            self._write_from(run, point)
        return run.step

    @property
    def config(self) -> RunConfig:
        """The configuration in use (data.shuffle is filled in once it is open)."""
        return self._asked if self._run is None else self._run.config

    @property
    def steps_done(self) -> int:
        """Optimizer steps taken so far, those before a resume included."""
        return self._opened().step

    @property
    def micro_batches(self) -> int:
        """Micro-batches of this rank in one step."""
        run = self._opened()
        return num_microbatches(run.config, run.topology.world_size)

    @property
    def topology(self) -> Topology:
        """Where this rank stands: ranks and sizes (``rank``, ``data_rank``, ``data_size``, ...), device, groups."""
        return self._opened().topology

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes and prints."""
        return self._opened().topology.is_first

    @property
    def engine(self) -> Engine:
        """Model and optimizer: ``chunks``, ``optimizer``, ``zero_grad``, ``step``."""
        return self._opened().engine

    @property
    def model(self) -> list[torch.nn.Module]:
        """This rank's model chunks, bare Megatron modules: one, or parallel.virtual_pipeline of them."""
        return [getattr(chunk, "module", chunk) for chunk in self._opened().engine.chunks]

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run's data. Raises ValueError without data."""
        run = self._opened()
        self._need_data(run)
        assert run.samples is not None
        return run.samples.tokenizer

    def _opened(self) -> Run:
        if self._run is None:
            raise UserError("the session is not open: use it in a with block, or call open()")
        return self._run

    def _need_data(self, run: Run) -> None:
        if run.samples is None:
            raise ValueError("this session has no data of its own (data=False): give it batches")

    def _checked(self, run: Run, given: Sequence[Batch | Mapping[str, torch.Tensor]]) -> list[Batch]:
        m, size = run.config.model, run.config.train.micro_batch_size
        if len(given) != self.micro_batches:
            raise ValueError(f"batches: {len(given)} micro-batches; this rank has {self.micro_batches} in a step")
        wanted = [size, m.decoder_length if m.encoder_decoder else m.seq_length]
        found = [_batch(one) for one in given]
        for number, batch in enumerate(found):
            for name in ("tokens", "labels", "loss_mask"):
                shape = list(getattr(batch, name).shape)
                if shape != wanted:
                    fits = f"[train.micro_batch_size, tokens of a sample] = {wanted} would fit"
                    raise ValueError(f"batches[{number}].{name} has the shape {shape}; {fits}")
        return found

    def _write_from(self, run: Run, point: ResumePoint | None) -> None:
        """On rank 0: metrics.jsonl goes on after the run's present step; lines of later steps are moved beside it."""
        from altup_moe.train.log_files import JsonLines

        self._close_lines()
        if run.topology.is_first:
            changes = point.changes if point else None
            self._lines = JsonLines(metrics_file(run.config.log.run_dir), run.step + 1, changes)

    def _close_lines(self) -> None:
        if self._lines is not None:
            self._lines.close()
            self._lines = None


def _batch(given: Batch | Mapping[str, Any]) -> Batch:
    import torch

    from altup_moe.train.batches import Batch

    if isinstance(given, Batch):
        return given
    tensors = dict(given)
    return Batch(**{"loss_mask": torch.ones_like(tensors["labels"], dtype=torch.float32), **tensors})


@contextmanager
def _environment_kept() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
