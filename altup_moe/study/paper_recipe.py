"""The paper's path as a file: pretraining, fine-tuning, evaluation and seeds, one section each.

`pretrain` holds the sections of a run; `finetune` what differs from it. With every seed two runs are fine-tuned alike,
one from the pretrained weights and one from random ones (the control).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.checks import check_config
from altup_moe.config.data_checks import mixture_entries
from altup_moe.config.keys import field_hints, unknown_key
from altup_moe.config.load import SECTIONS, coerce, from_dict, read_yaml
from altup_moe.config.ranges import COUNT, RANGES

WORD_TASKS = ("squad", "squad-bigbench", "record")
"""Tasks answered in words: their exact match and F1 are means over questions."""
CANARY = "squad-bigbench"
"""Its files say that they are never to be pretrained on."""
TUNED, CONTROL = "finetuned", "control"
ARMS = (TUNED, CONTROL)
PARTS = ("seeds", "pretrain", "finetune", "evaluate")
OF_THE_WEIGHTS = {
    "model": {"seq_length", "decoder_seq_length", "attention_dropout", "hidden_dropout"},
    **dict.fromkeys(("altup", "sequence", "moe"), frozenset[str]()),
}
"""Sections that make the weights, and those of their keys that fine-tuning may change."""
OF_THE_TOOL = ("train.seed", "checkpoint.initial_load_path", "log.run_dir")
"""What differs from stage to stage, and is set for each of them."""


@dataclass(frozen=True)
class Evaluation:
    """Which questions both fine-tuned runs answer: the first ones of the task's validation split."""

    task: str
    limit: int | None = None
    """None is all of them."""
    batch_size: int = 32


@dataclass(frozen=True)
class Recipe:
    """A whole path. ``run_dir``: everything below it. Stages of a seed: `pretrained`, and an arm's `tuned`."""

    pretrain: RunConfig
    finetune: RunConfig
    evaluate: Evaluation
    seeds: tuple[int, ...]
    run_dir: Path

    def directory(self, seed: int, stage: str) -> Path:
        """A stage's run directory."""
        return self.run_dir / f"seed_{seed}" / stage

    def pretrained(self, seed: int) -> RunConfig:
        """The run that is pretrained."""
        return self._placed(self.pretrain, seed, "pretrained", None)

    def tuned(self, seed: int, arm: str) -> RunConfig:
        """The run that is fine-tuned: from the pretrained weights, or as the control from random ones."""
        start = str(self.directory(seed, "pretrained")) if arm == TUNED else None
        return self._placed(self.finetune, seed, arm, start)

    def configs(self) -> Iterator[tuple[str, RunConfig]]:
        """Every run, by the section that it comes from."""
        for seed in self.seeds:
            yield "pretrain", self.pretrained(seed)
            yield from (("finetune", self.tuned(seed, arm)) for arm in ARMS)

    def identity(self) -> dict[str, Any]:
        """What results of one directory must have in common; seeds may be added, and where things lie is free."""
        runs = {"pretrain": self.pretrain.to_dict(), "finetune": self.finetune.to_dict()}
        for sections in runs.values():
            del sections["log"], sections["checkpoint"], sections["data"]["cache"]
        return {**runs, "evaluate": asdict(self.evaluate)}

    def _placed(self, config: RunConfig, seed: int, stage: str, start: str | None) -> RunConfig:
        return replace(
            config,
            train=replace(config.train, seed=seed),
            data=replace(config.data, cache=config.data.cache or str(self.run_dir / "data")),
            checkpoint=replace(config.checkpoint, initial_load_path=start),
            log=replace(config.log, run_dir=str(self.directory(seed, stage))),
        )


def load_recipe(path: str | Path, run_dir: Path | None = None) -> Recipe:
    """Read and check a recipe; every stage of it is a run that could start on one process.

    Args:
        run_dir: instead of pretrain.log.run_dir.

    Raises:
        ConfigError: a key that is unknown or belongs to the tool, or a value that does not fit (with its section).
        UserError: a file that cannot be read.
    """
    content = {str(key): value for key, value in read_yaml(path).items()}
    for key, value in content.items():
        if key not in PARTS:
            raise unknown_key(key, value, PARTS)
    for part in ("pretrain", "finetune", "evaluate"):
        if not isinstance(content.get(part), dict):
            raise ConfigError(part, content.get(part), "is a section of a recipe: its keys stand below it, indented")
    _check_sections(content["pretrain"], content["finetune"])
    pretrain = _run("pretrain", content["pretrain"])
    finetune = _run("finetune", merged(content["pretrain"], content["finetune"]))
    if CANARY in mixture_entries(pretrain.data.mixture):
        fits = f"{CANARY} carries BIG-bench's canary and is never pretrained on; leave it out"
        raise ConfigError("pretrain.data.mixture", list(pretrain.data.mixture), fits)
    recipe = Recipe(
        pretrain,
        finetune,
        _evaluation(content["evaluate"]),
        _seeds(content.get("seeds", [1, 2, 3])),
        run_dir or Path(pretrain.log.run_dir),
    )
    for part, config in recipe.configs():
        try:
            check_config(config, 1)
        except ConfigError as error:
            raise ConfigError(f"{part}.{error.key}", error.value, error.fits) from None
    return recipe


def merged(base: Mapping[Any, Any], changes: Mapping[Any, Any]) -> dict[Any, Any]:
    """Sections of a run, key by key: the changes' where they have one, else the base's."""
    return {name: {**(base.get(name) or {}), **(changes.get(name) or {})} for name in {**base, **changes}}


def _check_sections(pretrain: dict[Any, Any], finetune: dict[Any, Any]) -> None:
    for part, sections in (("pretrain", pretrain), ("finetune", finetune)):
        for name, values in sections.items():
            if not isinstance(values, dict | None.__class__):
                raise ConfigError(f"{part}.{name}", values, "is a section: its keys stand below it, indented")
            for key, value in (values or {}).items():
                _check_key(part, str(name), str(key), value)


def _check_key(part: str, section: str, key: str, value: object) -> None:
    dotted = f"{part}.{section}.{key}"
    if f"{section}.{key}" in OF_THE_TOOL and dotted != "pretrain.log.run_dir":
        where = "seeds" if key == "seed" else "pretrain.log.run_dir"
        raise ConfigError(dotted, value, f"is set for every stage and seed; leave it out ({where} says what there is)")
    if part == "finetune" and key not in OF_THE_WEIGHTS.get(section, {key}):
        raise ConfigError(
            dotted, value, f"would be another model than the pretrained one; set pretrain.{section}.{key}"
        )


def _run(part: str, sections: dict[Any, Any]) -> RunConfig:
    try:
        return from_dict(sections)
    except ConfigError as error:
        raise ConfigError(f"{part}.{error.key}", error.value, error.fits) from None


def _evaluation(content: dict[Any, Any]) -> Evaluation:
    hints = field_hints(Evaluation)
    values: dict[str, Any] = {}
    for key, value in content.items():
        if key not in hints:
            raise unknown_key(f"evaluate.{key}", value, [f"evaluate.{name}" for name in hints])
        values[key] = coerce(f"evaluate.{key}", hints[key], value)
    if values.get("task") not in WORD_TASKS:
        raise ConfigError("evaluate.task", values.get("task"), f"{', '.join(WORD_TASKS)} would fit")
    for field in fields(Evaluation)[1:]:
        if values.get(field.name) is not None:
            COUNT.check(f"evaluate.{field.name}", values[field.name])
    return Evaluation(**values)


def _seeds(given: object) -> tuple[int, ...]:
    if not isinstance(given, list) or not given or any(type(seed) is not int for seed in given):
        raise ConfigError("seeds", given, "expects whole numbers, one or more, in brackets")
    if len(set(given)) < len(given):
        raise ConfigError("seeds", given, "each once would fit")
    for seed in given:
        RANGES["train.seed"].check("seeds", seed)
    return tuple(given)


def is_recipe(path: str | Path) -> bool:
    """Whether a YAML file is a recipe rather than a run."""
    return not set(map(str, read_yaml(path))) & set(SECTIONS) and "pretrain" in read_yaml(path)
