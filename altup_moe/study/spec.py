"""Records of a study: its rows (a configuration with a seed each), their budget, and how they are measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from altup_moe.config import RunConfig
from altup_moe.config.identity import identity
from altup_moe.study.report.gaps import gaps
from altup_moe.study.report.options import REFERENCE
from altup_moe.study.slurm.cluster import Cluster

Launcher = Literal["torchrun", "netlab", "slurm"]
Role = Literal["trained", "tuning"]
"""What a row is for: its figures, or only the choice of a tuned key of others."""


@dataclass(frozen=True)
class Budget:
    """What every row may spend: tokens or seconds."""

    tokens: int | None = None
    """Training tokens of a row; train.steps follows from it."""
    seconds: float | None = None
    """Seconds of training steps; a row ends with the first step after them. train.steps is then the most it takes, and
    the schedule must not depend on the number of steps (constant, inverse_sqrt)."""


def steps_for(tokens: int, config: RunConfig) -> int:
    """Optimizer steps that read so many tokens, rounded up."""
    return max(1, -(-tokens // (config.train.global_batch_size * config.model.tokens_per_sample)))


@dataclass(frozen=True)
class MeasureSpec:
    """How latency is measured once all rows are trained. Rows take turns, and nothing else runs."""

    train_steps: int = 20
    """Timed training steps of a row."""
    warmup: int = 2
    """Steps, prompts and tokens that precede the timed ones in every round."""
    rounds: int = 2
    """Times that the measuring processes are started; each takes its share of the steps."""
    prefill_tokens: int | None = None
    """Tokens of a prompt; None is half of model.seq_length."""
    prompts: int = 20
    """Timed prompts of a row."""
    decode_tokens: int = 32
    """Timed generated tokens of a row."""
    recorded: int = 4
    """Further steps whose exchanges are recorded, of rows whose experts lie on several ranks."""


@dataclass(frozen=True)
class Branch:
    """The checkpoint of a step of another row."""

    row: RowSpec
    step: int


@dataclass(frozen=True)
class RowSpec:
    """One row to train: a configuration, a seed, and what runs it."""

    name: str
    family: str
    seed: int
    overrides: dict[str, Any]
    config: RunConfig
    budget: Budget
    ranks: int = 1
    launcher: Launcher = "torchrun"
    rate: str | None = None
    threads: int = 1
    after: RowSpec | None = None
    """The row of the same seed that is trained before it; this row starts from its weights."""
    branch: Branch | None = None
    """Where it goes on from. That saves time alone: the row is the same run without it (checkpoint.branch_from)."""
    role: Role = "trained"

    @property
    def before(self) -> RowSpec | None:
        """The row that has to be trained before it."""
        return self.branch.row if self.branch is not None else self.after

    @property
    def config_hash(self) -> str:
        """SHA-256 of everything that the row's figures depend on; paths, logging and saving are left out."""
        content: dict[str, Any] = identity(self.config)
        path = content.pop("checkpoint")["initial_load_path"]
        del content["log"], content["data"]["cache"]
        run = {"ranks": self.ranks, "launcher": self.launcher, "rate": self.rate, "threads": self.threads}
        content |= {"initial_load_path": path, "run": run, "budget": vars(self.budget)}
        if self.after is not None:
            content["after"] = self.after.config_hash
        if self.role != "trained":
            content["role"] = self.role
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def key(self) -> str:
        """Name of the row's directory."""
        return f"{self.name}-s{self.seed}-{self.config_hash[:8]}"

    @property
    def cores(self) -> int:
        """Cores that its training fills."""
        return self.ranks * self.threads

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimizer step."""
        return self.config.train.global_batch_size * self.config.model.tokens_per_sample


Losses = Callable[[RowSpec], float | None]
"""Held-out loss of a row: None while it is not trained, inf if it has failed."""


@dataclass(frozen=True)
class Study:
    """All rows in the order of training: the first seed of every configuration, then the second.

    ``grow``: the study with the rows that follow once its rows are trained (a ladder's that tunes); None has no more.
    ``models``: of a ladder, families times sizes: those that are not tuned yet have rows to come.
    ``cluster``: the nodes of launcher slurm.
    """

    name: str
    rows: list[RowSpec]
    measure: MeasureSpec
    grow: Callable[[Losses], Study] | None = None
    models: int = 0
    cluster: Cluster = field(default_factory=Cluster)

    @property
    def on_slurm(self) -> bool:
        """Whether its rows are jobs of SLURM: all of them, or none."""
        return any(row.launcher == "slurm" for row in self.rows)

    def notes(self) -> list[str]:
        """What may surprise before it starts: rows that are not known yet, a budget that is less than one step, cells
        of the report without figures.

        The report's are those against its default reference.
        """
        trained = [row for row in self.rows if row.role == "trained"]
        more = self.models - len({(row.family, row.config.model.hidden_size) for row in trained})
        if more > 0:
            return [f"{more} of {self.models} models are tuned first; their other rows follow", *self._small_budget()]
        return [*self._small_budget(), *(f"report: {gap}" for gap in gaps(trained, REFERENCE))]

    def _small_budget(self) -> list[str]:
        small = [row for row in self.rows if (row.budget.tokens or row.tokens_per_step) < row.tokens_per_step]
        if not small:
            return []
        row = max(small, key=lambda each: each.tokens_per_step)
        return [
            f"budget.tokens={row.budget.tokens:,} is less than one step of {row.name} ({row.tokens_per_step:,} tokens)"
            f": {len(small)} of {len(self.rows)} rows train one step"
        ]
