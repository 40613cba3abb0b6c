"""The background threads of a save: one copies and writes this rank's tensors, one (on rank 0) publishes the result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from altup_moe.checkpoint.manifest import Manifest, StoredFile
from altup_moe.checkpoint.staging_buffer import StagingBuffer
from altup_moe.checkpoint.store import prune, publish
from altup_moe.checkpoint.tensors import items
from altup_moe.checkpoint.write import NamedSlice, stored_tensors, write_files
from altup_moe.checkpoint.write_balancing import WriteAssignment
from altup_moe.config import CheckpointConfig, UserError
from altup_moe.parallel.parameter_names import is_buffer

WRITE_THREADS = 2
"""Files that a rank writes at a time."""


@dataclass
class ThreadResult:
    """What a thread reports back.

    ``copied``: set once the thread no longer reads the live tensors. ``files``: the files it wrote, by name.
    ``problem``: why it failed; None if it did not.
    """

    copied: threading.Event = field(default_factory=threading.Event)
    files: dict[str, StoredFile] = field(default_factory=dict)
    problem: str | None = None


def start_thread(work: Callable[..., None], *args: object) -> threading.Thread:
    """Start a daemon thread that calls ``work(*args)``."""
    thread = threading.Thread(target=work, args=args, name="checkpoint", daemon=True)
    thread.start()
    return thread


def changes_in_forward(name: str) -> bool:
    """Whether a stored tensor may change before the next optimizer update: router biases and random states do."""
    return name.startswith("rng/") or is_buffer(name)


def copy_and_write(
    result: ThreadResult,
    partial: Path,
    assignment: WriteAssignment,
    tensors: dict[NamedSlice, Tensor],
    staging: StagingBuffer | None,
    rank: int,
) -> None:
    """Copy the tensors that `start` has not copied, then write this rank's files into `partial`.

    Args:
        staging: where to copy to; None writes from the live tensors.
    """
    with reported(result, f"rank {rank}: {partial}"):
        try:
            if staging is not None:
                live = {part: tensor for part, tensor in tensors.items() if not changes_in_forward(part.name)}
                tensors |= staging.stage(live)
        finally:
            result.copied.set()
        result.files = write_files(
            partial,
            assignment.mine,
            assignment.specs,
            lambda name, tensor_slice: items(tensors[NamedSlice(name, tensor_slice)].to("cpu")),
            WRITE_THREADS,
        )


def publish_and_prune(
    result: ThreadResult,
    partial: Path,
    head: Manifest,
    files: Mapping[str, StoredFile],
    assignment: WriteAssignment,
    config: CheckpointConfig,
) -> None:
    """On rank 0: make the written checkpoint complete, then remove old ones.

    Args:
        head: everything of the manifest but files and tensors.
        files: what all ranks wrote.
    """
    with reported(result, f"{partial}"):
        # In the order of the plan: the same checkpoint always has the same manifest.
        ordered = {name: files[name] for name in assignment.files}
        publish(partial, replace(head, files=ordered, tensors=stored_tensors(assignment.files, assignment.specs)))
        prune(partial.parent, config.keep, config.keep_every, _last_taken(head), config.save_at)


def _last_taken(head: Manifest) -> int | None:
    """The last step that was taken, not skipped; None where nothing is to follow: at the good end of a run."""
    finished = (head.config.get("train") or {}).get("steps") == head.step
    return None if finished and not head.skipped_in_row else head.step - head.skipped_in_row


@contextmanager
def reported(result: ThreadResult, where: str) -> Iterator[None]:
    """Turn an exception of the block into the result's problem: no caller can catch what a thread raises."""
    try:
        yield
    except OSError as error:
        result.problem = f"{where}: {error.strerror}"
    except UserError as error:
        result.problem = f"{error}"
    except BaseException as error:
        result.problem = f"{where}: {type(error).__name__}: {error}"
