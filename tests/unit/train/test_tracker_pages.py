"""Names and pages of numbers in TensorBoard, W&B (a stand-in records the calls) and MLflow (the same)."""

from __future__ import annotations

import re
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from altup_moe.config import LogConfig, ModelConfig, MoEConfig, RunConfig
from altup_moe.report.metric_groups import GROUPS, METRICS
from altup_moe.train.loggers import open_loggers
from altup_moe.train.metrics import RoutingLoads, StepMetrics
from altup_moe.train.tensorboard_files import TensorBoard
from altup_moe.train.tracker_pages import (
    CELL,
    EVEN,
    OVER,
    UNDER,
    load_picture,
    routing_scalars,
    tensorboard_pages,
    tracked,
)
from tests.unit.train.records import MOE, VALID, record

LOADS = RoutingLoads(2, [[], [10.0, 20.0, 30.0, 20.0]], [0.0, 8.0])
OVERLAP = {"exchange_ms": 4.0, "exposed_ms": 1.0, "mixing_ms": 2.0, "mixing_hidden_ms": 1.5}
NUMBERS = ("int", "float", "int | None", "float | None")
FULL = record(3, **MOE, **VALID, **OVERLAP, routing=LOADS, scores={"eval/squad/f1": 12.5})


def config(**log: Any) -> RunConfig:
    """Two layers, the second with four experts."""
    model = ModelConfig(num_layers=2)
    return RunConfig(model, moe=MoEConfig(num_experts=4, layer_freq=2), log=LogConfig(**log))


def test_every_number_of_a_step_has_a_group_and_a_name_of_its_own() -> None:
    numbers = {field.name for field in fields(StepMetrics) if field.type in NUMBERS}
    assert {metric.key for metric in METRICS} == numbers - {"step"}
    assert len({metric.path for metric in METRICS}) == len(METRICS)
    assert {metric.group for metric in METRICS} == set(GROUPS) - {"eval"}
    found = tracked(FULL)
    assert found["loss/lm"] == 2.25
    assert found["validation/bits_per_byte"] == 1.375
    assert found["overlap/mixing_hidden_ms"] == 1.5
    # MLflow's rule, which is the strictest: these characters, and a path that is in its shortest form.
    assert all(re.fullmatch(r"[\w.\- ]+(/[\w.\- ]+)+", name) for name in found)


def test_layers_and_few_experts_are_curves_and_many_are_not() -> None:
    assert routing_scalars(LOADS) == {
        "routing/layer_01/load_imbalance": 1.5,
        "routing/layer_01/dropped_share": 0.1,
        "routing/layer_01/expert_00": 0.5,
        "routing/layer_01/expert_01": 1.0,
        "routing/layer_01/expert_02": 1.5,
        "routing/layer_01/expert_03": 1.0,
    }
    many = RoutingLoads(1, [[1.0] * 257], [0.0])
    assert set(routing_scalars(many)) == {"routing/layer_00/load_imbalance", "routing/layer_00/dropped_share"}
    assert not [name for name in tracked(record(1, **MOE)) if "layer" in name]


def test_the_picture_has_the_colours_of_the_loads() -> None:
    picture = load_picture(RoutingLoads(1, [[], [4.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], [0.0] * 3))
    assert picture.shape == (2 * CELL, 4 * CELL, 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[0, 0]) == OVER
    assert tuple(picture[CELL - 1, CELL]) == UNDER
    assert tuple(picture[CELL, -1]) == EVEN
    assert load_picture(RoutingLoads(1, [[]], [0.0])).shape == (CELL, CELL, 3)


def test_tensorboards_pages_draw_every_number_and_every_layer(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    run = config(run_dir=str(tmp_path))
    run = replace(run, train=replace(run.train, eval_tasks=("squad",)))
    logger = TensorBoard(run, first_step=1)
    logger.log(FULL)
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) == set(tracked(FULL))
    assert tags["images"] == ["routing/load"]
    (event,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout()
    layout.ParseFromString(event.tensor_proto.string_val[0])
    pages = {
        category.title: {chart.title: chart.multiline.tag for chart in category.chart} for category in layout.category
    }
    assert list(pages) == ["Training loss", "Validation", "Tasks", "Optimizer", "Speed and memory", "Routing",
                           "Overlap (of recorded steps)"]  # fmt: skip
    drawn = [re.compile(tag) for charts in pages.values() for regexes in charts.values() for tag in regexes]
    undrawn = {"validation/perplexity", "optimizer/consumed_samples"}
    assert {tag for tag in tags["scalars"] if not any(one.match(tag) for one in drawn)} == undrawn
    (experts,) = pages["Routing"]["experts of layer 1"]
    assert [tag for tag in tags["scalars"] if re.match(experts, tag)] == [
        f"routing/layer_01/expert_{n:02}" for n in range(4)
    ]


def test_a_dense_run_has_no_page_of_routing_and_t5s_layers_are_counted_through() -> None:
    assert "Routing" not in tensorboard_pages(RunConfig())
    t5 = replace(config(), model=ModelConfig(num_layers=4, arch="t5", num_decoder_layers=2))
    charts = [chart for chart in tensorboard_pages(t5)["Routing"] if chart.startswith("experts")]
    assert charts == [f"experts of layer {layer}" for layer in (1, 3, 5)]


class Recorder(SimpleNamespace):
    """Stands in for wandb, its run, and mlflow: remembers every call."""

    def __init__(self) -> None:
        super().__init__(calls=[])

    def __getattr__(self, name: str) -> Any:
        def called(*args: Any, **kwargs: Any) -> Recorder:
            self.calls.append((name, args, kwargs))
            return self

        return called

    def of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The calls of one function."""
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_trackers_get_the_same_names(tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, tracker, recorder)
    key = {"wandb": "wandb_project", "mlflow": "mlflow_experiment"}[tracker]
    loggers = open_loggers(config(run_dir=str(tmp_path), tensorboard=False, **{key: "mine"}), 1)
    for logger in loggers:
        logger.log(FULL)
        logger.close()
    if tracker == "mlflow":
        assert recorder.of("log_metrics") == [((tracked(FULL),), {"step": 3})]
        return
    (((values,), kwargs),) = recorder.of("log")
    assert kwargs == {"step": 3}
    assert values["step"] == 3
    assert {k: v for k, v in values.items() if k not in ("step", "routing/load")} == tracked(FULL)
    assert recorder.of("Image")[0][0][0].shape == (CELL, 4 * CELL, 3)
    defined = {args[0]: kwargs for args, kwargs in recorder.of("define_metric")}
    assert defined.pop("step") == {}
    assert set(defined) == {f"{group}/*" for group in GROUPS}
    assert all(kwargs["step_metric"] == "step" for kwargs in defined.values())
    assert (defined["validation/*"]["summary"], defined["eval/*"]["summary"]) == ("min", "max")
