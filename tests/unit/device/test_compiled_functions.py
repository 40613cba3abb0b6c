"""Functions that are compiled for many shapes."""

from __future__ import annotations

from typing import Any

import torch

from altup_moe.device.compiled_functions import compiled_often


def test_one_function_is_compiled_for_more_shapes_than_dynamo_allows() -> None:
    """And for each of them once. The limit of everybody else stays."""
    compiled: list[int] = []

    def backend(graph: Any, inputs: list[Any]) -> Any:
        compiled.append(inputs[0].shape[0])
        return graph.forward

    limit = torch._dynamo.config.recompile_limit
    double = compiled_often(lambda x: 2 * x, fullgraph=True, dynamic=False, backend=backend)
    sizes = list(range(2, 4 + limit))
    for _ in range(2):
        for size in sizes:
            assert double(torch.ones(size)).sum() == 2 * size
    assert compiled == sizes
    assert torch._dynamo.config.recompile_limit == limit
