"""Every name of another library that this package replaces: what, why, for which versions, and a guard each.

`replace` sets such a name, and nothing else does. It first looks whether the name is still what the table says, so that
a new version of a library ends with one line and not with wrong numbers. docs/developing/patches.md is this table:

    python -m altup_moe.parallel.patches > docs/developing/patches.md
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

from altup_moe.config import UserError

MEGATRON = "megatron-core 0.16.1, 0.19.2"
TORCH = "torch 2.11.0, 2.13.0"
DEEPSPEED = "deepspeed 0.19.8"


class PatchError(UserError):
    """A name that is to be replaced no longer looks as the table says."""


@dataclass(frozen=True)
class Patch:
    """A name of another library, and what is known of it.

    ``target``: "module:attribute", with dots inside a class. ``reason``: what fails without the patch.
    ``versions``: the releases that it was run on. ``where``: the file that replaces it.
    ``parameters``: names of all its parameters, in order; None where there are none to compare (values, classes and
    functions in C). ``looks_up``: global names that the code of the function uses, which are given another meaning.
    ``may_be_missing``: some of the versions lack the name. ``or_else``: the name that those have in its place, beside
    it; one of the two must be there.
    """

    target: str
    reason: str
    versions: str
    where: str
    parameters: tuple[str, ...] | None = None
    looks_up: tuple[str, ...] = ()
    may_be_missing: bool = False
    or_else: str = ""

    @property
    def owner(self) -> tuple[Any, str]:
        """(module or class that holds the name, the name in it)."""
        module, _, path = self.target.partition(":")
        *classes, name = path.split(".")
        owner: Any = import_module(module)
        for part in classes:
            owner = getattr(owner, part)
        return owner, name

    def problem(self) -> str | None:
        """Why the name cannot be replaced, in one line; None if it looks as expected."""
        try:
            owner, name = self.owner
            found = getattr(owner, name)
        except (ImportError, AttributeError):
            if self.or_else:
                there = hasattr(self.owner[0], self.or_else)
                return None if there else self._line(f"neither it nor {self.or_else} is there")
            return None if self.may_be_missing else self._line("it is not there")
        if self.parameters is not None:
            try:
                has = tuple(inspect.signature(found).parameters)
            except (TypeError, ValueError):
                return self._line("it is no function")
            if has != self.parameters:
                return self._line(f"it takes ({', '.join(has)}), not ({', '.join(self.parameters)})")
        names = getattr(getattr(found, "__code__", None), "co_names", ())
        if unknown := [name for name in self.looks_up if name not in names]:
            return self._line(f"it does not use {', '.join(unknown)}")
        return None

    def _line(self, difference: str) -> str:
        package = {"megatron": "megatron-core"}.get(self.library, self.library)
        try:
            installed = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed = "not installed"
        return (
            f"{self.target}: {self.where} replaces it, but {difference}; {package} {installed}, known: {self.versions}"
        )

    @property
    def library(self) -> str:
        """The top-level package."""
        return self.target.partition(":")[0].partition(".")[0]


def _cuda() -> Iterator[Patch]:
    where = "parallel/cpu.py"
    answers: dict[str, tuple[tuple[str, ...] | None, str]] = {
        "current_device": ((), "Megatron asks for the current device; it is the CPU"),
        "synchronize": (("device",), "timers synchronise; CPU operations are in order"),
        "Stream": (None, "side streams do not exist"),
        "Event": (None, "events do not exist"),
        "current_stream": (("device",), "the dispatcher and the optimizer ask for it"),
        "default_stream": (("device",), "the distributed optimizer asks for it"),
        "stream": (("stream",), "a context of a side stream does nothing"),
        "get_rng_state": (("device",), "the CUDA random state is the CPU generator's"),
        "set_rng_state": (("new_state", "device"), "the CUDA random state is the CPU generator's"),
        "manual_seed": (("seed",), "Megatron seeds its tensor-parallel random states"),
        "empty_cache": ((), "there is no cache of a CUDA allocator"),
    }
    for name, (parameters, reason) in answers.items():
        yield Patch(f"torch.cuda:{name}", f"CPU: {reason}", TORCH, where, parameters)
    yield Patch("torch:Tensor.cuda", "CPU: Megatron moves tensors to the GPU; they stay", TORCH, where)
    yield Patch("torch:Tensor.type", "CPU: optimizers compare it with torch.cuda.FloatTensor", TORCH, where)
    for name in FACTORIES:
        yield Patch(f"torch:{name}", 'CPU: Megatron names device="cuda" literally', TORCH, where)


FACTORIES = ("empty", "zeros", "ones", "full", "tensor", "arange", "rand", "randn")
"""torch's factories that Megatron calls with a literal device."""

_GATHER = ("input_", "group", "output_split_sizes", "use_global_buffer")
_SCATTER = ("input_", "group", "input_split_sizes", "use_global_buffer")


def _megatron() -> Iterator[Patch]:
    cpu, compat = "parallel/cpu.py", "parallel/compat.py"
    core = "megatron.core"
    yield Patch(
        f"{core}.tensor_parallel.random:_get_cuda_rng_state",
        "CPU: its own way to the CUDA random state",
        MEGATRON,
        cpu,
        ("device", "clone", "graph_safe"),
    )
    yield Patch(
        f"{core}.tensor_parallel.random:_set_cuda_rng_state",
        "CPU: its own way to the CUDA random state",
        MEGATRON,
        cpu,
        ("new_state", "device", "graph_safe"),
    )
    yield Patch(
        f"{core}.transformer.moe.token_dispatcher:maybe_move_tensor_to_cpu",
        "CPU: split sizes become arrays only as they leave a GPU",
        MEGATRON,
        cpu,
        ("tensor", "as_numpy", "record_stream"),
    )
    uneven = "CPU: gloo can neither gather nor reduce-scatter pieces of different sizes (expert-tensor parallelism)"
    yield Patch(f"{core}.tensor_parallel.mappings:_gather_along_first_dim", uneven, MEGATRON, cpu, _GATHER)
    yield Patch(f"{core}.tensor_parallel.mappings:_reduce_scatter_along_first_dim", uneven, MEGATRON, cpu, _SCATTER)
    types = "CPU: it compares tensor types with torch.cuda.*; wrapped, not replaced"
    yield Patch(
        f"{core}.optimizer.optimizer:clip_grad_by_total_norm_fp32",
        types,
        MEGATRON,
        cpu,
        ("parameters", "max_norm", "total_norm", "use_decoupled_grad"),
    )
    yield Patch(
        f"{core}.optimizer.optimizer:Float16OptimizerWithFloat16Params.__init__",
        types,
        MEGATRON,
        cpu,
        ("self", "optimizer", "config", "grad_scaler", "init_state_fn"),
    )
    yield Patch(f"{core}.optimizer.distrib_optimizer:DistributedOptimizer.__init__", types, MEGATRON, cpu)
    yield Patch(
        f"{core}.transformer.moe.moe_utils:te_general_gemm",
        "0.16.1 leaves it undefined without Transformer Engine, and the router's linear asks for it",
        MEGATRON,
        compat,
        may_be_missing=True,
    )
    yield Patch(
        f"{core}.transformer.attention:apply_rotary_pos_emb",
        "train.compile: a chain of operations on queries and keys, where one compiled pass does; wrapped",
        MEGATRON,
        "model/rotary.py",
    )
    yield Patch(
        f"{core}.transformer.moe.moe_utils:MoEAuxLossAutoScaler.main_loss_backward_scale",
        "it stays from run to run, on the device and in the shape of the first one; forgotten at the end of each",
        MEGATRON,
        "parallel/release.py",
    )
    yield Patch(
        f"{core}.transformer.moe.token_dispatcher:permute",
        "0.16.1 selects routes by a mask, and waits for a GPU twice; replaced only where the code does so",
        MEGATRON,
        compat,
    )
    yield Patch(
        f"{core}.optimizer.clip_grads:multi_tensor_scale_impl",
        "without Transformer Engine and apex, clipping copies every gradient",
        MEGATRON,
        compat,
        ("chunk_size", "noop_flag", "tensor_lists", "scale"),
    )


def _deepspeed() -> Iterator[Patch]:
    where = "parallel/deepspeed_groups.py"
    groups = "DeepSpeed makes groups by a rule of its own; here they are Megatron's"
    for name in (
        "_EXPERT_PARALLEL_GROUP",
        "_EXPERT_PARALLEL_GROUP_RANKS",
        "_EXPERT_DATA_PARALLEL_GROUP",
        "_EXPERT_DATA_PARALLEL_GROUP_RANKS",
        "mpu",
        "expert_tensor_parallel_world_size",
        "mesh_device",
        "_WORLD_GROUP",
    ):
        yield Patch(f"deepspeed.utils.groups:{name}", groups, DEEPSPEED, where)
    yield Patch(
        "deepspeed.ops:__compatible_ops__",
        "CPU: the first use would compile a shared-memory all-reduce (30 to 130 s), and fail without ninja",
        DEEPSPEED,
        where,
    )
    yield Patch("deepspeed.comm.comm:cdb", "an earlier run of the process may have left its world", DEEPSPEED, where)
    kept = "the world in which deepspeed was imported: it would never be freed"
    for name in ("barrier", "monitored_barrier"):
        yield Patch(f"deepspeed.comm.torch:TorchBackend.{name}.__defaults__", kept, DEEPSPEED, "parallel/release.py")
    yield Patch(
        "deepspeed.moe.mappings:_gather_tokens",
        "gloo wants input and output of the same number of dimensions",
        DEEPSPEED,
        where,
        ("input_", "dim"),
    )
    yield Patch(
        "deepspeed.moe.sharded_moe:MOELayer.forward",
        "its exchange blocks and its tensor ranks drop tokens; a copy of the function uses ours",
        DEEPSPEED,
        "moe/deepspeed_backend.py",
        looks_up=("_AllToAll", "bwc_tensor_model_parallel_world_size"),
    )


RESTARTS = "torch.distributed.elastic.agent.server.local_elastic_agent:LocalElasticAgent._monitor_workers"


def _torchrun() -> Iterator[Patch]:
    yield Patch(
        RESTARTS,
        "torchrun starts ranks again after a signal or a mistake of the user's too, names the failed rank that it"
        " collected first, and waits 30 s for a stopped one; it has no settings for that",
        TORCH,
        "launch/restarts.py",
        ("self", "worker_group"),
    )


START_RANK = "torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler:SubprocessHandler._popen"
COMPILE = "torch:compile"


def _start() -> Iterator[Patch]:
    yield Patch(
        COMPILE,
        "Megatron's decorators load the compiler, 1.5 s, at the import; the first call does so instead, on a CPU none",
        TORCH,
        "parallel/compile_later.py",
    )
    yield Patch(
        START_RANK,
        "a rank of a restart is forked from a process that has imported torch and Megatron; torchrun has no setting",
        TORCH,
        "launch/standby.py",
        ("self", "args", "env"),
    )


def _gloo() -> Iterator[Patch]:
    yield Patch(
        "torch.distributed.distributed_c10d:ProcessGroupGloo.__init__",
        "CPU: a thread a group that wakes a hundred times a second; a topology's groups share one",
        TORCH,
        "parallel/gloo_device.py",
    )


def _waits() -> Iterator[Patch]:
    counted = (
        "the host's waits for a GPU are counted (`bench gpu`); wrapped during a step, where it plays one also on a CPU"
    )
    for name in ("Event", "Stream"):
        yield Patch(f"torch.cuda:{name}.synchronize", counted, TORCH, "bench/gpu/host_waits.py")


def _watchdog() -> Iterator[Patch]:
    where, world = "parallel/watchdog/notes.py", "torch.distributed.distributed_c10d"
    noted = "a hang is explained from notes of every collective and exchange; wrapped while a run is open"
    for name in STARTS_WORK:
        yield Patch(f"{world}:ProcessGroup.{name}", noted, TORCH, where)
    for new, old in RENAMED:
        yield Patch(f"{world}:ProcessGroup.{new}", noted, TORCH, where, or_else=old)
        yield Patch(f"{world}:ProcessGroup.{old}", noted, TORCH, where, or_else=new)
    yield Patch(f"{world}:Work.wait", noted, TORCH, where)


STARTS_WORK = (
    "allreduce",
    "allreduce_coalesced",
    "allgather",
    "allgather_coalesced",
    "reduce_scatter",
    "alltoall",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "send",
    "recv",
    "recv_anysource",
    "barrier",
)
"""Methods of ProcessGroup that start a collective or an exchange, in every version."""

RENAMED = (
    ("all_gather_single", "_allgather_base"),
    ("all_gather_single_coalesced", "allgather_into_tensor_coalesced"),
    ("reduce_scatter_single", "_reduce_scatter_base"),
    ("reduce_scatter_single_coalesced", "reduce_scatter_tensor_coalesced"),
    ("all_to_all_single", "alltoall_base"),
)
"""More of them: the name that torch 2.13 calls, and the only one of 2.11, which 2.13 has as well."""

_WORLD = "torch.distributed.distributed_c10d"
COLLECTIVES = (
    *(f"{_WORLD}:ProcessGroup.{name}" for name in (*STARTS_WORK, *(name for both in RENAMED for name in both))),
    f"{_WORLD}:Work.wait",
)
"""Targets that start a collective or wait for one."""

PATCHES = {
    patch.target: patch
    for patch in (*_cuda(), *_megatron(), *_deepspeed(), *_torchrun(), *_start(), *_gloo(), *_waits(), *_watchdog())
}
"""Every patch by its target."""


def original(target: str) -> Any:
    """What a name of another library is now (of a class its descriptor, such as a classmethod); None if it is missing.

    Raises:
        KeyError: the table does not have the target. PatchError: the name does not look as the table says.
    """
    patch = PATCHES[target]
    if problem := patch.problem():
        raise PatchError(problem)
    owner, name = patch.owner
    return vars(owner).get(name, getattr(owner, name, None))


def replace(target: str, new: Any) -> Any:
    """Set a name of another library; returns what it was. Raises as `original` does."""
    before = original(target)
    owner, name = PATCHES[target].owner
    setattr(owner, name, new)
    return before


def as_markdown() -> str:
    """The table as the page of the documentation."""
    lines = [
        "# Patches of other libraries",
        "",
        "Written by `python -m altup_moe.parallel.patches`; a test compares. Each row is checked before the name is",
        "replaced (`altup_moe/parallel/patches.py`): a name that looks different ends the run with one line.",
        "Rows that begin with CPU do nothing where CUDA is present.",
        "",
        "| Name | Why | Versions | Where | Guard |",
        "|---|---|---|---|---|",
    ]
    for patch in PATCHES.values():
        name = patch.target.replace(":", ".")
        lines.append(f"| `{name}` | {patch.reason} | {patch.versions} | `{patch.where}` | {_guard(patch)} |")
    return "\n".join(lines) + "\n"


def _guard(patch: Patch) -> str:
    if patch.looks_up:
        return f"its code uses {', '.join(f'`{name}`' for name in patch.looks_up)}"
    if patch.parameters is not None:
        return f"takes `({', '.join(patch.parameters)})`"
    if patch.or_else:
        return f"it, or `{patch.or_else}`, is there"
    return "none needed: set only where it is missing" if patch.may_be_missing else "it is there"


if __name__ == "__main__":
    print(as_markdown(), end="")
