"""Configuration: the dataclasses, how they are read, and which values fit together."""

from altup_moe.config.errors import ConfigError, DataError, UserError
from altup_moe.config.schema import (
    AltUpConfig,
    CheckpointConfig,
    DataConfig,
    LogConfig,
    ModelConfig,
    MoEConfig,
    OptimConfig,
    OverlapConfig,
    ParallelConfig,
    RunConfig,
    SequenceConfig,
    TrainConfig,
)

__all__ = [
    "AltUpConfig",
    "CheckpointConfig",
    "ConfigError",
    "DataConfig",
    "DataError",
    "LogConfig",
    "MoEConfig",
    "ModelConfig",
    "OptimConfig",
    "OverlapConfig",
    "ParallelConfig",
    "RunConfig",
    "SequenceConfig",
    "TrainConfig",
    "UserError",
]
