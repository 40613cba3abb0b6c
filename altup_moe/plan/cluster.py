"""What a cluster can do. Each kind of cluster has a YAML file (configs/clusters) in the units of the data sheets."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from altup_moe.config import ConfigError, UserError
from altup_moe.config.load import read_yaml
from altup_moe.config.ranges import COUNT
from altup_moe.config.shipped import find_file
from altup_moe.plan.cpu_cost_model import CALLS, MESSAGES, OPERATIONS, PIECES, SIZES, TOKEN_COSTS, CpuCostModel


@dataclass(frozen=True)
class Cluster:
    """One kind of node and the network between nodes. Rates are of one GPU and of one direction."""

    name: str
    gpus_per_node: int
    peak_tflops_bf16: float
    """Dense matrix products, 10^12 operations a second."""
    peak_tflops_fp32: float
    efficiency: float
    """Share of the peak that large products reach. It is the only constant fitted to published runs of a chip."""
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
    """Share of the memory that a run may fill. The CUDA context and the libraries need the rest."""
    cpu_cost_model: CpuCostModel | None = None
    """Measured costs of ranks that run one operation after another, as torch does on a CPU (`altup-moe plan measure`).

    None: kernels are fused, and reach `efficiency` of the peak or the memory's bandwidth.
    """

    def flops(self, precision: str) -> float:
        """Operations a second that large products reach. ``precision``: bf16 or fp32."""
        return self.efficiency * self.peak(precision)

    def peak(self, precision: str) -> float:
        """Operations a second of the data sheet."""
        return 1e12 * (self.peak_tflops_bf16 if precision == "bf16" else self.peak_tflops_fp32)

    @property
    def memory_rate(self) -> float:
        """Memory bandwidth, bytes a second."""
        return 1e9 * self.memory_gb_per_s


def load_cluster(name: str) -> Cluster:
    """Load a shipped cluster by name, or any YAML file. Raises ConfigError: it does not exist, or a value is wrong."""
    try:
        path = find_file(name, "cluster")
    except UserError as error:
        fits = str(error).removeprefix(f"{name}: ")
        raise ConfigError("cluster", name, f"{fits}; `altup-moe plan measure FILE` writes one") from None
    return cluster_from(read_yaml(path), path.stem)


def gpus_of(cluster: Cluster, nodes: int = 1, gpus: int | None = None) -> int:
    """`gpus`, or all GPUs of the nodes. Raises ConfigError for a number below 1."""
    COUNT.check("nodes", nodes)
    if gpus is None:
        return nodes * cluster.gpus_per_node
    COUNT.check("gpus", gpus)
    return gpus


def cluster_from(values: dict[Any, Any], name: str) -> Cluster:
    """A mapping as a cluster. Raises ConfigError: an unknown or missing key, or a number that is not positive."""
    # Files measured by earlier versions have the cost model under this key.
    values = {"cpu_cost_model" if key == "unfused" else key: value for key, value in values.items()}
    known = {f.name: f for f in fields(Cluster) if f.name != "name"}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"cluster.{key}", value, f"is no key of a cluster; {', '.join(known)} are")
        if key != "cpu_cost_model" and not (_is_number(value) and value > 0):
            raise ConfigError(f"cluster.{key}", value, "must be a number above 0")
    missing = [key for key in known if key not in values and key not in ("usable_memory", "cpu_cost_model")]
    if missing:
        raise ConfigError(f"cluster.{missing[0]}", None, f"is missing in {name}")
    if "cpu_cost_model" in values:
        values["cpu_cost_model"] = cpu_cost_model_from(values["cpu_cost_model"])
    return Cluster(name=name, **values)


def cpu_cost_model_from(values: Any) -> CpuCostModel:
    """A mapping as a `CpuCostModel`. Raises ConfigError for any other form than `altup-moe plan measure` writes."""
    products = len(SIZES) ** 3
    wanted: dict[str, Any] = {"forward_gflops": products, "backward_gflops": products, "pieces_ns": PIECES}
    wanted |= {"calls_us": CALLS, "operations": OPERATIONS, "network": OPERATIONS, "lone": None}
    remedy = "altup-moe plan measure writes what fits"
    if not isinstance(values, dict) or set(values) != set(wanted):
        raise ConfigError("cluster.cpu_cost_model", values, f"must have {', '.join(wanted)}; {remedy}")
    found: dict[str, Any] = {}
    for key, form in wanted.items():
        value = values[key]
        if form is None:
            fits, found[key] = _is_number(value) and value > 0, value
        elif isinstance(form, int):
            fits = _are_numbers(value, form) and min(value) > 0
            found[key] = tuple(value) if fits else ()
        else:
            fits = isinstance(value, dict) and set(form) - set(TOKEN_COSTS) <= set(value) <= set(form)
            each = len(MESSAGES) if form is OPERATIONS else 2
            fits = fits and all(_are_numbers(row, each) for row in value.values())
            found[key] = {name: tuple(row) for name, row in value.items()} if fits else {}
        if not fits:
            raise ConfigError(f"cluster.cpu_cost_model.{key}", value, f"is not of the right form; {remedy}")
    return CpuCostModel(**found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are_numbers(values: Any, count: int) -> bool:
    return isinstance(values, list) and len(values) == count and all(_is_number(value) for value in values)


def cluster_yaml(cluster: Cluster) -> str:
    """A cluster as the text of its YAML file, numbers with four significant digits."""
    lines = ["# Measured by altup-moe plan measure: medians, one thread a process, every core busy."]
    for key, value in vars(cluster).items():
        if key not in ("name", "cpu_cost_model"):
            lines.append(f"{key}: {_figures(value)}")
    if cluster.cpu_cost_model is not None:
        lines.append("cpu_cost_model:  # altup_moe/plan/cpu_cost_model.py says what each is")
        for key, value in vars(cluster.cpu_cost_model).items():
            if isinstance(value, dict):
                lines.append(f"  {key}:")
                lines += [f"    {name}: {_figures(pair)}" for name, pair in value.items()]
            else:
                lines.append(f"  {key}: {_figures(value)}")
    return "\n".join(lines) + "\n"


def _figures(value: Any) -> str:
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, float):
        return "[" + ", ".join(_figures(one) for one in value) + "]"
    # YAML reads 1e-05 as a string.
    text = f"{float(f'{value:.4g}')}"
    return text if "." in text else text.replace("e", ".0e")
