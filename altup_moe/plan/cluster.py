"""What a cluster can do: a YAML file a kind (configs/clusters), rates in the units their makers print."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from altup_moe.config import ConfigError
from altup_moe.config.load import read_yaml
from altup_moe.plan.cpu_cost_model import CALLS, MESSAGES, OPERATIONS, PIECES, SIZES, Unfused

CLUSTERS = Path(__file__).parents[2] / "configs" / "clusters"
"""Where the shipped files lie."""


@dataclass(frozen=True)
class Cluster:
    """One kind of node and the network between nodes. Rates are of one GPU, in one direction."""

    name: str
    gpus_per_node: int
    peak_tflops_bf16: float
    """Dense matrix products, 10^12 operations a second."""
    peak_tflops_fp32: float
    efficiency: float
    """Share of the peak that large products reach: the one constant fitted to published runs of a chip."""
    memory_gib: float
    memory_gb_per_s: float
    """Memory bandwidth, 10^9 bytes a second."""
    node_gb_per_s: float
    """Links inside a node (NVLink)."""
    node_latency_us: float
    """A collective's fixed cost inside a node, microseconds."""
    network_gb_per_s: float
    """Network between nodes."""
    network_latency_us: float
    usable_memory: float = 0.9
    """Share of the memory that a run may fill; the rest is the context's, the allocator's and the libraries'."""
    unfused: Unfused | None = None
    """What `tools/plan.py measure` found of ranks that run one operation after another.

    None: kernels are fused, and reach `efficiency` of the peak or the memory's bandwidth.
    """

    def flops(self, precision: str) -> float:
        """Operations a second that products reach."""
        return self.efficiency * self.peak(precision)

    def peak(self, precision: str) -> float:
        """The makers' figure, operations a second."""
        return 1e12 * (self.peak_tflops_bf16 if precision == "bf16" else self.peak_tflops_fp32)

    @property
    def memory_rate(self) -> float:
        """Bytes a second."""
        return 1e9 * self.memory_gb_per_s


def load_cluster(name: str) -> Cluster:
    """A shipped cluster by name, or any file. Raises ConfigError: no such one, or a value that does not fit."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else CLUSTERS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in CLUSTERS.glob("*.yaml")))
        raise ConfigError("cluster", name, f"{known} would fit, or a file (tools/plan.py measure writes one)")
    return cluster_from(read_yaml(path), path.stem)


def cluster_from(values: dict[Any, Any], name: str) -> Cluster:
    """A mapping as a cluster. Raises ConfigError for a key too many, one missing, or a number that is not positive."""
    known = {f.name: f for f in fields(Cluster) if f.name != "name"}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"cluster.{key}", value, f"is no key of a cluster; {', '.join(known)} are")
        if key != "unfused" and not (_is_number(value) and value > 0):
            raise ConfigError(f"cluster.{key}", value, "must be a number above 0")
    missing = [key for key in known if key not in values and key not in ("usable_memory", "unfused")]
    if missing:
        raise ConfigError(f"cluster.{missing[0]}", None, f"is missing in {name}")
    unfused = {"unfused": unfused_from(values["unfused"])} if "unfused" in values else {}
    return Cluster(name=name, **{**values, **unfused})


def unfused_from(values: Any) -> Unfused:
    """A mapping as `Unfused`. Raises ConfigError for what `tools/plan.py measure` would not have written."""
    products = len(SIZES) ** 3
    wanted: dict[str, Any] = {"forward_gflops": products, "backward_gflops": products, "pieces_ns": PIECES}
    wanted |= {"calls_us": CALLS, "operations": OPERATIONS, "network": OPERATIONS, "lone": None}
    remedy = "tools/plan.py measure writes what fits"
    if not isinstance(values, dict) or set(values) != set(wanted):
        raise ConfigError("cluster.unfused", values, f"must have {', '.join(wanted)}; {remedy}")
    found: dict[str, Any] = {}
    for key, form in wanted.items():
        value = values[key]
        if form is None:
            fits, found[key] = _is_number(value) and value > 0, value
        elif isinstance(form, int):
            fits = _are_numbers(value, form) and min(value) > 0
            found[key] = tuple(value) if fits else ()
        else:
            fits = isinstance(value, dict) and set(value) == set(form)
            each = len(MESSAGES) if form is OPERATIONS else 2
            fits = fits and all(_are_numbers(row, each) for row in value.values())
            found[key] = {name: tuple(row) for name, row in value.items()} if fits else {}
        if not fits:
            raise ConfigError(f"cluster.unfused.{key}", value, f"is not of the right form; {remedy}")
    return Unfused(**found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(_is_number(value) for value in values)
