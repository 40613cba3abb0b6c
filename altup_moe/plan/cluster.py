"""What a cluster can do: a YAML file a kind (configs/clusters), rates in the units their makers print."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from altup_moe.config import ConfigError
from altup_moe.config.load import read_yaml

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
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise ConfigError(f"cluster.{key}", value, "must be a number above 0")
    missing = [key for key in known if key not in values and key != "usable_memory"]
    if missing:
        raise ConfigError(f"cluster.{missing[0]}", None, f"is missing in {name}")
    return Cluster(name=name, **values)
