"""What a run says at its start of values that change it, or that cannot have their whole effect: a line each."""

from __future__ import annotations

from altup_moe.config import RunConfig
from altup_moe.config.load import from_dict
from altup_moe.config.resume_keys import spelled_changes
from altup_moe.train.optim import rate_of_step
from altup_moe.train.resume import ResumePoint


def resume_notes(config: RunConfig, resume: ResumePoint, world_size: int) -> list[str]:
    """What is different from here on in a run that goes on."""
    if resume.weights_only:
        return []
    t, step, notes = config.train, resume.manifest.step, []
    if resume.changes:
        rates = _rates(config, resume) if any(_of_schedule(key) for key in resume.changes) else ""
        unread = "; checkpoint.initial_load_path is not read, the run has its own weights"
        unread = unread if "checkpoint.initial_load_path" in resume.changes else ""
        notes.append(f"changed after step {step}: {spelled_changes(resume.changes)}{rates}{unread}")
    dropout = config.model.attention_dropout or config.model.hidden_dropout
    if dropout and not resume.same_streams(config, world_size):
        notes.append(f"another layout than that of step {step}: dropout draws other masks from here on")
    if step >= t.steps:
        notes.append(f"all {step} steps are done; a larger train.steps goes on")
    elif t.stop_after is not None and step >= t.stop_after:
        notes.append(f"step {step} is done, and train.stop_after={t.stop_after}: nothing is left to do")
    return notes


def _of_schedule(key: str) -> bool:
    return key.startswith("optim.") or key == "train.steps"


def _rates(config: RunConfig, resume: ResumePoint) -> str:
    number = resume.manifest.scheduler_steps + 1
    before, now = (rate_of_step(each, number) for each in (from_dict(resume.manifest.config), config))
    return f"; learning rate of the next step {now:.3g} instead of {before:.3g}" if now != before else ""
