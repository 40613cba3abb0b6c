"""`altup-moe bench coordinates`: how large activations become after some steps, by width: the coordinate check of muP.

What muP promises (Yang et al., arXiv 2203.03466, section 4 and appendix D.1): after any number of steps the entries of
every activation, and what the updates add to every output, are of one size whatever the width. Without it they grow
with the width, and with them the best learning rate shrinks.

Logits of tokens and of routers are also sums over random initial weights, a part that shrinks as the root of the width
under muP and is no harm. Their line is therefore what the *changes* of their weights contribute, (W - W_0) h. The
coefficients of the stream start at the same values for all widths: their line is how far they moved. Matrices that
compute coefficients from features move by 1 / d under muP, for their products sum over d of them: their line is the
movement times the number of their inputs.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from altup_moe.altup.variants import StreamVariant, find_variant
from altup_moe.bench.options import CoordinatesBench, Parametrization
from altup_moe.bench.stepper import Stepper
from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, OptimConfig, OverlapConfig, RunConfig, TrainConfig
from altup_moe.config.checks import check_config
from altup_moe.config.files import write_text
from altup_moe.parallel.topology import Topology, topology
from altup_moe.report.formatting import columns
from altup_moe.train.optim import build_scheduler, is_coefficient

Coordinates = dict[str, float]
"""Root mean square of the entries of each activation, by its name."""
INITIAL_STD = 0.1
"""Of hidden weights at the smallest width, about 1 / sqrt(64): layers then add what is of the stream's size."""


def run_config(bench: CoordinatesBench, parametrization: Parametrization, hidden_size: int, seed: int) -> RunConfig:
    """One model: heads of one size, every second layer with experts if there are any."""
    heads = hidden_size // bench.head_size
    model = ModelConfig(
        num_layers=bench.num_layers,
        hidden_size=hidden_size,
        ffn_hidden_size=2 * hidden_size,
        num_attention_heads=heads,
        num_query_groups=heads,
        seq_length=bench.seq_length,
        vocab_size=256,
        share_embeddings_and_output_weights=bench.recycled,
        init_method_std=INITIAL_STD,
    )
    mup = parametrization == "mup"
    optim = OptimConfig(
        learning_rate=bench.learning_rate,
        min_learning_rate=bench.learning_rate,
        warmup_steps=0,
        schedule="constant",
        clip_grad=0.0,
        adam_eps=1e-20,  # what muP says holds for none
        parametrization=parametrization,
        mup_base_hidden_size=bench.hidden_sizes[0] if mup else None,
        mup_base_num_layers=bench.num_layers if mup else None,
    )
    size = bench.micro_batch_size
    return RunConfig(
        model,
        AltUpConfig(
            width=bench.width,
            variant=bench.variant,
            recycled=bench.recycled,
            level=find_variant(bench.variant).levels[0],
        ),
        moe=MoEConfig(num_experts=bench.moe_experts, ffn_hidden_size=hidden_size, layer_freq=2),
        # Inline: the stream is there after every layer.
        overlap=OverlapConfig(mixing="inline"),
        optim=optim,
        train=TrainConfig(steps=bench.steps + 1, micro_batch_size=size, global_batch_size=size, seed=seed),
    )


class Recorder:
    """Notes the sizes of activations during forward passes, by hooks on a chunk's modules. ``row``: its stream's."""

    def __init__(self, chunk: nn.Module, row: StreamVariant) -> None:
        self.sizes: Coordinates = {}
        self._chunk = chunk
        self._matrices = {name for name, each in {**row.head, **row.coefficients}.items() if each.kind != "other"}
        self._initial = {name: p.detach().clone() for name, p in chunk.named_parameters() if is_coefficient(name)}
        for name, module in chunk.named_modules():
            if label := _label(name):
                module.register_forward_hook(self._output(label))
            elif name.endswith("router") or name == "output_layer":
                label = f"{_layer(name)} router" if name.endswith("router") else "logits"
                module.register_forward_hook(self._readout(f"{label}, by updates"), with_kwargs=True)

    def moved(self) -> Coordinates:
        """How far coefficients are from their initial values, over all layers; of matrices times their inputs."""
        squares: dict[str, list[float]] = defaultdict(list)
        for name, parameter in self._chunk.named_parameters():
            if name in self._initial:
                leaf = name.rpartition(".")[2]
                change = float((parameter.detach() - self._initial[name]).square().mean())
                if leaf in self._matrices:
                    squares[f"coefficients {leaf}, moved, times inputs"].append(change * parameter.shape[-1] ** 2)
                else:
                    squares[f"coefficients {leaf}, moved"].append(change)
        return {name: math.sqrt(sum(each) / len(each)) for name, each in squares.items()}

    def _output(self, label: str) -> Any:
        def note(module: nn.Module, given: Any, output: Any) -> None:
            self.sizes[label] = _rms(output[0] if isinstance(output, tuple) else output)

        return note

    def _readout(self, label: str) -> Any:
        first: list[Tensor] = []

        def note(module: nn.Module, given: tuple[Tensor, ...], keywords: Mapping[str, Any], output: Any) -> None:
            given_weight = keywords.get("weight")
            weight: Any = module.weight if given_weight is None else given_weight
            if not first:
                first.append(weight.detach().clone())
            with torch.no_grad():
                self.sizes[label] = _rms(given[0].float() @ (weight - first[0]).float().t())

        return note


def _layer(name: str) -> str:
    return f"layer {int(name.split('.')[2]) + 1}"


def _label(name: str) -> str | None:
    """What the output of a module of Megatron's is called in the table; None if it is not recorded."""
    if name == "embedding":
        return name
    if not name.startswith("decoder.layers."):
        return None
    end = ".".join(part for part in name.split(".")[3:] if part != "layer")
    if name.count(".") == 2 or end == "branches.mlp":  # the last step of a layer
        end = "stream"
    known = {"self_attention": "attention", "mlp": "feed-forward", "stream": "stream"}
    return f"{_layer(name)} {known[end]}" if end in known else None


def _rms(values: Tensor) -> float:
    return float(values.detach().float().square().mean().sqrt())


def take_steps(config: RunConfig, topo: Topology) -> Coordinates:
    """Sizes at the last of `train.steps` steps on one batch, whose tokens are as uneven as a text's (Zipf)."""
    stepper = Stepper(config, topo)
    generator = torch.Generator().manual_seed(config.train.seed)
    weights = 1 / torch.arange(1, config.model.vocab_size + 1, dtype=torch.float32)
    size, length = config.train.micro_batch_size, config.model.seq_length
    tokens = torch.multinomial(weights, size * (length + 1), True, generator=generator).view(size, length + 1)
    stepper.batch = replace(stepper.batch, tokens=tokens[:, :-1], labels=tokens[:, 1:])
    recorder = Recorder(stepper.chunks[0].module, find_variant(config.altup.variant))
    scheduler = build_scheduler(stepper.engine.optimizer, config)
    moved: Coordinates = {}
    for _ in range(config.train.steps):
        # What the last forward pass met: the last update comes after it.
        moved = recorder.moved()
        scheduler.step(1)
        stepper.step()
    return {**recorder.sizes, **moved}


def measure_coordinates(bench: CoordinatesBench) -> dict[Parametrization, dict[int, Coordinates]]:
    """Sizes by parametrization and width: root mean squares over all seeds."""
    for parametrization in bench.parametrizations:
        for hidden_size in bench.hidden_sizes:
            check_config(run_config(bench, parametrization, hidden_size, 0), 1)
    torch.set_num_threads(bench.threads)
    found: dict[Parametrization, dict[int, Coordinates]] = {}
    for parametrization in bench.parametrizations:
        for hidden_size in bench.hidden_sizes:
            seeds = []
            for seed in range(bench.seeds):
                config = run_config(bench, parametrization, hidden_size, seed)
                with topology(config.parallel) as topo:
                    seeds.append(take_steps(config, topo))
            pooled = {name: math.sqrt(sum(one[name] ** 2 for one in seeds) / len(seeds)) for name in seeds[0]}
            found.setdefault(parametrization, {})[hidden_size] = pooled
    return found


def growth(sizes: Mapping[int, Coordinates], name: str) -> float:
    """Size at the largest width over that at the smallest."""
    return sizes[max(sizes)][name] / sizes[min(sizes)][name]


def bench_coordinates(bench: CoordinatesBench) -> int:
    """Measure, print a table for each parametrization, and write the points if asked."""
    found = measure_coordinates(bench)
    family = f"K {bench.width}, {bench.moe_experts or 'no'} experts"
    points = [
        {
            "family": family,
            "parametrization": parametrization,
            "width": hidden_size,
            "step": bench.steps,
            "name": name,
            "rms": value,
        }
        for parametrization, by_width in found.items()
        for hidden_size, sizes in by_width.items()
        for name, value in sizes.items()
    ]
    if bench.out is not None:
        file = Path(bench.out)
        kept = json.loads(file.read_text(encoding="utf-8"))["points"] if file.is_file() else []
        same = {(family, each) for each in found}
        kept = [point for point in kept if (point["family"], point["parametrization"]) not in same]
        write_text(file, json.dumps({"points": [*kept, *points]}, indent=1) + "\n")
    if bench.json:
        print(json.dumps({"bench": vars(bench), "points": points}))
        return 0
    print(
        f"{family}, {bench.num_layers} layers, after {bench.steps} step(s) at rate {bench.learning_rate:g}, "
        f"{bench.seeds} seed(s): root mean square of the entries, by hidden size"
    )
    for parametrization, by_width in found.items():
        rows = [(parametrization, *map(str, by_width), "last / first")]
        for name in next(iter(by_width.values())):
            cells = [f"{sizes[name]:.4f}" for sizes in by_width.values()]
            rows.append((name, *cells, f"{growth(by_width, name):.2f}"))
        print("\n".join(["", *columns(rows)]))
    return 0
