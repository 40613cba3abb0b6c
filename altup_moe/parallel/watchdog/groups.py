"""Words for process groups: Megatron describes its own, torch numbers all."""

from __future__ import annotations

from typing import Any

NAMES = {
    "default_pg": "world",
    "DATA_PARALLEL_GROUP": "data",
    "DATA_PARALLEL_GROUP_WITH_CP": "data and context",
    "CONTEXT_PARALLEL_GROUP": "context",
    "MODEL_PARALLEL_GROUP": "tensor and pipeline",
    "TENSOR_MODEL_PARALLEL_GROUP": "tensor",
    "PIPELINE_MODEL_PARALLEL_GROUP": "pipeline",
    "EMBEDDING_GROUP": "embedding",
    "POSITION_EMBEDDING_GROUP": "position embedding",
    "TENSOR_AND_DATA_PARALLEL_GROUP_WITH_CP": "tensor, data and context",
    "TENSOR_AND_DATA_PARALLEL_GROUP": "tensor and data",
    "TENSOR_AND_CONTEXT_PARALLEL_GROUP": "tensor and context",
    "EXPERT_MODEL_PARALLEL_GROUP": "expert",
    "EXPERT_TENSOR_PARALLEL_GROUP": "expert tensor",
    "EXPERT_TENSOR_AND_MODEL_PARALLEL_GROUP": "expert and tensor",
    "EXPERT_TENSOR_MODEL_PIPELINE_PARALLEL_GROUP": "expert, tensor and pipeline",
    "EXPERT_DATA_PARALLEL_GROUP": "expert data",
    "INTRA_DISTRIBUTED_OPTIMIZER_INSTANCE_GROUP": "optimizer",
    "INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP": "partial data and context",
}
"""Megatron's descriptions (0.16.1 and 0.19.2, `parallel_state`), and torch's of the world."""


def name_of(group: Any) -> str:
    """What a process group is for, in words: ``tensor``, ``expert``; else as it describes itself."""
    description = group.group_desc
    if description in NAMES:
        return NAMES[description]
    if description and description != "undefined":
        return str(description).lower().replace("_parallel", "").removesuffix("_group").replace("_", " ")
    return f"group {group.group_name}"
