"""The library's public face: train, step, evaluate, generate, read, plan and extend from your own Python code.

    from altup_moe import api

    config = api.load_config("quickstart", {"parallel.expert": 1, "train.steps": 20})
    with api.session(config) as session:          # world, model, optimizer, data; goes on from a checkpoint if any
        for _ in range(20):
            print(session.step().loss)
        session.save()
    print(api.generate(config.log.run_dir, "The for statement"))

Names listed in `__all__` are stable: they change with a line in CHANGELOG.md. Importing this package loads neither
torch nor Megatron; what needs them loads them when it is called. Errors that a user can mend are `UserError` (one
line); its kinds `ConfigError` and `DataError` name a dotted key or a file.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from altup_moe.altup.coefficients import Coefficient
from altup_moe.api.configuration import check_config, load_config, world_size
from altup_moe.api.models import evaluate, generate, load_model
from altup_moe.api.planning import plan
from altup_moe.api.register import register_backend, register_corpus, register_objective, register_variant
from altup_moe.api.runs import CheckpointReader, RunReader, read_checkpoint, read_run, train
from altup_moe.api.sessions import Session, next_token_batch, session
from altup_moe.api.studies import read_study, study_frame
from altup_moe.config import ConfigError, DataError, RunConfig, UserError

if TYPE_CHECKING:
    from altup_moe.altup.static import Mixing
    from altup_moe.checkpoint.saver import Saved
    from altup_moe.data.layouts import next_tokens
    from altup_moe.data.recipes import SampleRecipe
    from altup_moe.inference.evaluate import Evaluation
    from altup_moe.inference.load_run import FinishedRun
    from altup_moe.moe.megatron_backend import OverlappedMoELayer
    from altup_moe.moe.torch_backend import StackedWeights
    from altup_moe.parallel.topology import Topology
    from altup_moe.plan.step import StepPlan
    from altup_moe.study.records import StudyRow
    from altup_moe.train.batches import Batch
    from altup_moe.train.metrics import StepMetrics
    from altup_moe.train.step import Validation

__all__ = [
    "Batch",
    "CheckpointReader",
    "Coefficient",
    "ConfigError",
    "DataError",
    "Evaluation",
    "FinishedRun",
    "Mixing",
    "OverlappedMoELayer",
    "RunConfig",
    "RunReader",
    "SampleRecipe",
    "Saved",
    "Session",
    "StackedWeights",
    "StepMetrics",
    "StepPlan",
    "StudyRow",
    "Topology",
    "UserError",
    "Validation",
    "check_config",
    "evaluate",
    "generate",
    "load_config",
    "load_model",
    "next_token_batch",
    "next_tokens",
    "plan",
    "read_checkpoint",
    "read_run",
    "read_study",
    "register_backend",
    "register_corpus",
    "register_objective",
    "register_variant",
    "session",
    "study_frame",
    "train",
    "world_size",
]

_LATER = {
    "Batch": "altup_moe.train.batches",
    "Evaluation": "altup_moe.inference.evaluate",
    "FinishedRun": "altup_moe.inference.load_run",
    "Mixing": "altup_moe.altup.static",
    "OverlappedMoELayer": "altup_moe.moe.megatron_backend",
    "SampleRecipe": "altup_moe.data.recipes",
    "Saved": "altup_moe.checkpoint.saver",
    "StackedWeights": "altup_moe.moe.torch_backend",
    "StepMetrics": "altup_moe.train.metrics",
    "StepPlan": "altup_moe.plan.step",
    "StudyRow": "altup_moe.study.records",
    "Topology": "altup_moe.parallel.topology",
    "Validation": "altup_moe.train.step",
    "next_tokens": "altup_moe.data.layouts",
}
"""Public names whose modules load when the name is first used: most of them load torch."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_LATER[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
