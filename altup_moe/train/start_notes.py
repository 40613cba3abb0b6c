"""What a run says at its start of values that change it, or that cannot have their whole effect: a line each."""

from __future__ import annotations

from altup_moe.config import AltUpConfig, RunConfig
from altup_moe.config.data_checks import TASK_NAMES, mixture_entries
from altup_moe.config.load import from_dict
from altup_moe.config.resume_keys import spelled_changes
from altup_moe.config.units import GIB
from altup_moe.data.objectives import SpanCounts, span_counts
from altup_moe.data.recipes import corruption_lengths, objective_of
from altup_moe.parallel.counts import count_parameters
from altup_moe.timeline.records import WARM_UP
from altup_moe.train.generation import generates
from altup_moe.train.resume import ResumePoint

PADDING_ROWS = 128
"""Rows of an embedding table that only round its size up are not spoken of."""


def start_of(step: int, resume: ResumePoint | None) -> str:
    """Where a run starts, and whose weights it has."""
    if resume is None:
        return "from step 0"
    if resume.weights_only:
        return f"a new run, from step 0 with the weights of {resume.directory}"
    if resume.branched:
        return f"a new run that branches off step {step} of {resume.directory}"
    return f"going on from step {step} ({resume.directory.name}{' in memory' if resume.in_memory else ''})"


def stream_note(config: RunConfig) -> str:
    """The stream that the run has, and which one a file has that does not name altup.width."""
    a, usual = config.altup, AltUpConfig().width
    delayed = ", its outputs delayed" if a.correct == "delayed" else ""
    if a.width == 1:
        return f"stream: altup.width=1, the plain Transformer{delayed} (without the key: {usual})"
    others = f"without the key: {usual}; 1 is the plain Transformer"
    around = "branches" if a.level == "branch" else "layers"
    return f"stream: altup.width={a.width} blocks ({others}), variant {a.variant} around {around}{delayed}"


def run_notes(config: RunConfig, valid_samples: int, token_ids: int, first_step: int) -> list[str]:
    """Values that are larger than what there is of it.

    Args:
        valid_samples: samples of the validation part. token_ids: ids of the tokenizer.
        first_step: the first one that is taken, from 1.
    """
    t, o, rows, notes = config.train, config.optim, config.model.vocab_size, []
    if rows - token_ids >= PADDING_ROWS:
        unused = f"the tokenizer has {token_ids} ids; {rows - token_ids} rows of the tables are never used"
        notes.append(f"model.vocab_size={rows}: {unused}")
    if t.eval_samples > valid_samples:
        notes.append(f"train.eval_samples={t.eval_samples}: the validation part has {valid_samples}; all are read")
    if t.steps < o.warmup_steps:
        # The warm-up is a straight line from zero.
        reached = f"the rate reaches {o.learning_rate * t.steps / o.warmup_steps:.3g} of {o.learning_rate:.3g}"
        notes.append(f"optim.warmup_steps={o.warmup_steps}: train.steps ({t.steps}) end inside it; {reached}")
    last = min(t.steps, t.stop_after or t.steps)
    recorded = max(0, last - first_step + 1 - WARM_UP)
    if config.log.profile_steps > recorded:
        fits = f"the run takes {max(0, last - first_step + 1)} more step(s), the first {WARM_UP} unrecorded"
        notes.append(f"log.profile_steps={config.log.profile_steps}: {fits}; {recorded} are recorded")
    if generates(config):
        size = count_parameters(config).total * 4 / GIB
        given = {"log.sample_interval": config.log.sample_interval, "train.eval_tasks": t.eval_tasks}
        keys = ", ".join(key for key, value in given.items() if value)
        notes.append(f"{keys}: rank 0 holds the whole model once more, {size:.2f} GiB")
    return notes + _spans(config)


def _spans(config: RunConfig) -> list[str]:
    """Where a window is too short for the noise that is asked for."""
    # A run of tasks alone corrupts nothing, and its lengths need not fit a window.
    text = not config.data.mixture or mixture_entries(config.data.mixture).keys() - set(TASK_NAMES)
    if not text or objective_of(config.model, config.data) != "span_corruption":
        return []
    density, mean = config.data.noise_density, config.data.mean_noise_span
    length = corruption_lengths(config.model, config.data).raw
    counts = span_counts(length, density, mean)
    asked = SpanCounts(round(length * density), round(counts.noise / mean))
    if counts == asked:
        return []
    made = f"a window of {length} tokens drops {counts.noise} in {counts.spans} span(s)"
    return [
        f"data.noise_density={density:g}, data.mean_noise_span={mean:g}: {made}, not {asked.noise} in {asked.spans}"
    ]


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
    before, now = (_rate_of_step(each, number) for each in (from_dict(resume.manifest.config), config))
    return f"; learning rate of the next step {now:.3g} instead of {before:.3g}" if now != before else ""


def _rate_of_step(config: RunConfig, number: int) -> float:
    from altup_moe.train.optim import rate_of_step  # imports Megatron, which a dry run mostly does without

    return rate_of_step(config, number)
