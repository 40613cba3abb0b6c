"""What follows a skipped step: the next one, the end of the run, or the step after an older checkpoint."""

from __future__ import annotations

from altup_moe.checkpoint.saver import SaveError
from altup_moe.checkpoint.store import complete_checkpoints, go_back, last_good, step_of
from altup_moe.config.run_directory import checkpoints_dir
from altup_moe.parallel.control_collectives import gather_json
from altup_moe.train.resume import ResumePoint, check_bytes, point_at
from altup_moe.train.routing import RoutingSums
from altup_moe.train.run import Run, restore_run


class Diverged(RuntimeError):
    """The run cannot go on with these numbers; its message is one line. Every rank raises it."""


def after_skip(run: Run) -> ResumePoint | None:
    """Say why the last step was skipped, and heed train.max_skipped and train.on_spike. Collective.

    Returns:
        The point that the run has gone back to; None if it goes on.
    Raises:
        Diverged: it ends here. Nothing is saved; the newest checkpoint that a good step followed is the latest again.
    """
    train, result = run.config.train, run.last
    assert result is not None
    if result.spike and train.on_spike == "rollback" and (point := _roll_back(run, result.reason)):
        return point
    if run.topology.is_first:
        print(f"step {run.step} is skipped: {result.reason}", flush=True)
    if result.spike and train.on_spike == "stop":
        raise _diverged(run, f"train.on_spike stop: {result.reason}")
    if train.max_skipped is not None and run.guard.skipped_in_row >= train.max_skipped:
        raise _diverged(run, f"train.max_skipped {train.max_skipped} are reached: {result.reason}")
    return None


def _roll_back(run: Run, reason: str) -> ResumePoint | None:
    """Go back to the newest checkpoint that a good step followed, past the samples from there to this step."""
    name = _go_back(run, keep_others=False, first=False)
    if name is None:
        return None
    spike, end = run.step, run.consumed_samples
    point = point_at(run.config, checkpoints_dir(run.config.log.run_dir) / name, weights_only=False)
    back = point.manifest.step
    times = run.rolled_back[1] + 1 if run.rolled_back[0] == back else 1
    if (limit := run.config.train.max_skipped) is not None and times > limit:
        raise _diverged(run, f"{limit} times the run went back to {name} (train.max_skipped), and still {reason}")
    check_bytes(point, run.topology)
    restore_run(run, point)
    run.rolled_back, run.routing = (back, times), RoutingSums(run.config)
    samples = [run.consumed_samples, end]
    run.passed_over = [*run.passed_over, {"step": run.step, "samples": samples}]
    if run.topology.is_first:
        passed = f"samples {samples[0]} to {samples[1] - 1} are passed over"
        print(f"step {spike} was a spike ({reason}): back to {name}; {passed}", flush=True)
    return point


def _diverged(run: Run, why: str) -> Diverged:
    """The error, once the latest checkpoint is one from before the first of the skipped steps."""
    last_taken = run.step - run.guard.skipped_in_row
    name = _go_back(run, keep_others=True, first=True)
    steps = f"step {run.step}" if last_taken + 1 == run.step else f"steps {last_taken + 1} to {run.step}"
    left = "there is no checkpoint from before" if name is None else f"the latest checkpoint is {name}, from before"
    return Diverged(f"diverged: {steps} skipped, {why}; nothing was saved, {left}")


def _go_back(run: Run, *, keep_others: bool, first: bool) -> str | None:
    """Make the newest checkpoint that a good step followed the latest, on rank 0. Collective.

    Args:
        first: where there is none, one that no step followed yet will do.
    Returns:
        Its name, on every rank; None if there is none.
    """
    try:
        run.saver.conclude()
    except SaveError as error:
        if run.topology.is_first:
            print(error, flush=True)
    name = None
    if run.topology.is_first:
        root, last_taken = checkpoints_dir(run.config.log.run_dir), run.step - run.guard.skipped_in_row
        # What the run has gone back to before had a good step after it then.
        good_before = max([last_taken, *(entry["step"] + 1 for entry in run.passed_over)])
        before = [path for path in complete_checkpoints(root) if step_of(path) <= last_taken]
        found = last_good(root, good_before) or (before[-1] if first and before else None)
        if found is not None:
            go_back(root, found, keep_others=keep_others)
            name = found.name
    told: str | None = gather_json(name, run.topology.device)[0]
    return told
