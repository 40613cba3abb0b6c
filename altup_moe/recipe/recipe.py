"""Read a recipe of the paper's path: pretraining, fine-tuning, evaluation and seeds, one section each.

`pretrain` holds the sections of a run; `finetune` what differs from it, or a list of steps that follow each other, each
with what differs from the step before. With every seed two runs are fine-tuned alike, one from the pretrained weights
and one from random ones (the control).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.checks import check_config
from altup_moe.config.data_checks import mixture_entries
from altup_moe.config.identity import identity
from altup_moe.config.keys import field_hints, unknown_key
from altup_moe.config.load import SECTIONS, coerce, from_dict, read_yaml
from altup_moe.config.ranges import COUNT, RANGES
from altup_moe.config.shipped import find_file

CANARIES = ("squad-bigbench", "squad-bigbench-sentences")
"""Tasks whose files carry BIG-bench's canary: models must not be pretrained on them."""
WORD_TASKS = ("squad", *CANARIES, "record")
"""Tasks with free-text answers: exact match and F1 are means over questions."""
TUNED, CONTROL = "finetuned", "control"
ARMS = (TUNED, CONTROL)
PARTS = ("seeds", "pretrain", "finetune", "evaluate")
OF_THE_WEIGHTS = {
    "model": {"seq_length", "decoder_seq_length", "attention_dropout", "hidden_dropout"},
    **dict.fromkeys(("altup", "sequence", "moe"), frozenset[str]()),
}
"""Sections that define the weights, with the keys of each that fine-tuning may change."""
OF_THE_TOOL = ("train.seed", "checkpoint.initial_load_path", "log.run_dir")
"""Keys that are set for each stage, and may not stand in a recipe."""


@dataclass(frozen=True)
class Evaluation:
    """Which questions both fine-tuned runs answer: the first ones of the task's validation split."""

    task: str
    limit: int | None = None
    """None is all of them."""
    batch_size: int = 32


@dataclass(frozen=True)
class PaperRecipe:
    """A recipe. ``run_dir``: directory of all results. A seed's runs: `pretrained`, and `tuning` of each arm."""

    pretrain: RunConfig
    finetune: dict[str, RunConfig]
    """Fine-tuning steps by their key in the file: `finetune`, or `finetune.1`, `finetune.2`, ..."""
    evaluate: Evaluation
    seeds: tuple[int, ...]
    run_dir: Path

    def directory(self, seed: int, stage: str) -> Path:
        """Run directory of a stage."""
        return self.run_dir / f"seed_{seed}" / stage

    def pretrained(self, seed: int) -> RunConfig:
        """Configuration of the pretraining run of a seed."""
        return self._placed(self.pretrain, seed, "pretrained", None)

    def tuning(self, seed: int, arm: str) -> list[RunConfig]:
        """Configurations of an arm's fine-tuning runs, each of which starts from the one before.

        The first starts from the pretrained weights, or in the control from random ones. The last one's directory is
        the arm's; that run answers the questions.
        """
        runs: list[RunConfig] = []
        start = str(self.directory(seed, "pretrained")) if arm == TUNED else None
        for number, config in enumerate(self.finetune.values(), 1):
            stage = arm if number == len(self.finetune) else f"{arm}_{number}"
            runs.append(self._placed(config, seed, stage, start))
            start = runs[-1].log.run_dir
        return runs

    def configs(self) -> Iterator[tuple[str, RunConfig]]:
        """Yield every run with the section that it comes from."""
        for seed in self.seeds:
            yield "pretrain", self.pretrained(seed)
            for arm in ARMS:
                yield from zip(self.finetune, self.tuning(seed, arm), strict=True)

    def identity(self) -> dict[str, Any]:
        """What all results in one run directory share. Seeds, paths, logging and checkpoints are left out."""
        runs = {part: identity(config) for part, config in {"pretrain": self.pretrain, **self.finetune}.items()}
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


def load_recipe(path: str | Path, run_dir: Path | None = None) -> PaperRecipe:
    """Read a recipe (a file, or a shipped one's name) and check that every stage can start on one process.

    Args:
        run_dir: instead of pretrain.log.run_dir.

    Raises:
        ConfigError: a key that is unknown or belongs to the tool, or a value that does not fit (with its section).
        UserError: a file that cannot be read.
    """
    content = {str(key): value for key, value in read_yaml(find_file(path, "recipe")).items()}
    for key, value in content.items():
        if key not in PARTS:
            raise unknown_key(key, value, PARTS)
    steps = _steps(content.get("finetune"))
    given = {"pretrain": content.get("pretrain"), **steps, "evaluate": content.get("evaluate")}
    for part, sections in given.items():
        if not isinstance(sections, dict):
            raise ConfigError(part, sections, "is a section of a recipe: its keys stand below it, indented")
    for part in ("pretrain", *steps):
        _check_sections(part, given[part])
    sections = content["pretrain"]
    pretrain, finetune = _run("pretrain", sections), {}
    for part, changes in steps.items():
        sections = merged(sections, changes)
        finetune[part] = _run(part, sections)
    if held := set(CANARIES) & set(mixture_entries(pretrain.data.mixture)):
        fits = f"{min(held)} carries BIG-bench's canary and is never pretrained on; leave it out"
        raise ConfigError("pretrain.data.mixture", list(pretrain.data.mixture), fits)
    recipe = PaperRecipe(
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
    """Merge the sections of a run key by key; a key of the changes replaces the base's."""
    return {name: {**(base.get(name) or {}), **(changes.get(name) or {})} for name in {**base, **changes}}


def _steps(finetune: Any) -> dict[str, Any]:
    """Fine-tuning steps by name: those of a list, or the one section."""
    if not isinstance(finetune, list):
        return {"finetune": finetune}
    if not finetune:
        raise ConfigError("finetune", finetune, "one step or more would fit")
    return {f"finetune.{number}": step for number, step in enumerate(finetune, 1)}


def _check_sections(part: str, sections: dict[Any, Any]) -> None:
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
    if part != "pretrain" and key not in OF_THE_WEIGHTS.get(section, {key}):
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
