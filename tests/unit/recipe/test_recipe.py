"""The paper's path: what a recipe says, what is refused, how figures are compared, and the whole of it once."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from altup_moe import cli
from altup_moe.commands import recipe as paper
from altup_moe.config import ConfigError, UserError
from altup_moe.config.load import load_config
from altup_moe.config.locks import locked_directory
from altup_moe.data.document import Document
from altup_moe.data.prepare import prepare_tokens
from altup_moe.data.tasks.metrics import squad_scores
from altup_moe.data.tasks.registry import TASKS
from altup_moe.data.tokenizer import train_bpe
from altup_moe.recipe.compare import loss_line, paired_difference, results, results_table
from altup_moe.recipe.recipe import ARMS, CANARIES, CONTROL, TUNED, is_recipe, load_recipe
from altup_moe.recipe.run import StageFailed, claim, run_stages, stages, threads_each, train_seconds, valid_loss
from altup_moe.study.job_pool import Job, StoppedBySignal

SHIPPED = Path(__file__).parents[3] / "configs" / "paper_tiny.yaml"
TEXT = "the cat sat on the mat, the dog lay on the log, and the bird flew over the house.\n"
WORDS = ("cat", "dog", "bird", "mat", "log", "house")


def recipe_file(path: Path, change: Callable[[dict[str, Any]], Any] = lambda content: None) -> Path:
    """The shipped recipe, changed."""
    content = yaml.safe_load(SHIPPED.read_text())
    change(content)
    (path / "recipe.yaml").write_text(yaml.safe_dump(content))
    return path / "recipe.yaml"


def test_the_arms_differ_in_where_they_start_and_seeds_in_nothing_else() -> None:
    recipe = load_recipe(SHIPPED)
    tuning, others = recipe.tuning(2, TUNED), recipe.tuning(2, CONTROL)
    for tuned, control in zip(tuning, others, strict=True):
        assert replace(tuned, log=control.log, checkpoint=control.checkpoint) == control
    starts = [run.checkpoint.initial_load_path for run in (*tuning, *others)]
    before = (str(recipe.directory(2, stage)) for stage in ("pretrained", "finetuned_1", "control_1"))
    assert starts == [next(before), next(before), None, next(before)]
    assert [run.log.run_dir for run in (tuning[-1], others[-1])] == [str(recipe.directory(2, arm)) for arm in ARMS]
    assert replace(recipe.pretrained(1), log=recipe.pretrained(2).log, train=recipe.pretrained(2).train) == (
        recipe.pretrained(2)
    )
    assert {config.data.cache for _, config in recipe.configs()} == {str(recipe.run_dir / "data")}
    assert tuning[0].model.hidden_size == recipe.pretrain.model.hidden_size  # what a step leaves out
    assert tuning[1].model.decoder_seq_length == tuning[0].model.decoder_seq_length == 16
    assert [run.data.mixture for run in tuning] == [("squad-bigbench-sentences",), ("squad-bigbench",)]
    assert len({config.log.run_dir for _, config in recipe.configs()}) == 5 * len(recipe.seeds)
    assert is_recipe(SHIPPED)
    assert not is_recipe(SHIPPED.with_name("t5_small.yaml"))


def test_one_step_needs_no_list(tmp_path: Path) -> None:
    change = _put("finetune", {"data": {"mixture": ["squad-bigbench"]}, "train": {"steps": 3}})
    recipe = load_recipe(recipe_file(tmp_path, change), tmp_path / "run")
    (tuned,) = recipe.tuning(1, TUNED)
    assert tuned.log.run_dir == str(recipe.directory(1, TUNED))
    assert tuned.checkpoint.initial_load_path == str(recipe.directory(1, "pretrained"))
    names = [stage.name for stage in stages(recipe)[:3]]
    assert names == ["seed 1: pretrain", "seed 1: fine-tune", "seed 1: evaluate finetuned"]


def test_every_task_of_the_package_with_the_canary_is_known() -> None:
    source = TASKS["squad-bigbench"].source
    assert {name for name, task in TASKS.items() if task.source == source} == set(CANARIES)


def _put(dotted: str, value: object) -> Callable[[dict[str, Any]], None]:
    """Set a key; numbers count steps from 1."""

    def change(content: Any) -> None:
        *path, key = (int(name) - 1 if name.isdigit() else name for name in dotted.split("."))
        for name in path:
            content = content[name] if isinstance(content, list) else content.setdefault(name, {})
        content[key] = value

    return change


REFUSED = [
    ("pretrian", {}, "pretrian", "nearest is pretrain"),
    ("finetune", None, "finetune", "is a section"),
    ("pretrain.model", 3, "pretrain.model", "is a section"),
    ("pretrain.model.hiden_size", 8, "pretrain.model.hiden_size", "hidden_size"),
    ("pretrain.train.seed", 8, "pretrain.train.seed", "seeds says"),
    ("finetune.1.log", {"run_dir": "x"}, "finetune.1.log.run_dir", "is set for every stage"),
    ("finetune.1.model.hidden_size", 64, "finetune.1.model.hidden_size", "another model"),
    ("finetune.2.altup", {"width": 4}, "finetune.2.altup.width", "another model"),
    ("finetune.2", 3, "finetune.2", "is a section"),
    ("finetune", [], "finetune", "one step or more"),
    ("finetune", {"train": {"steps": 0}}, "finetune.train.steps", "at least 1"),
    ("finetune.1.train.micro_batch_size", 5, "finetune.1.train.global_batch_size", "must be a multiple"),
    ("finetune.1.optim.learning_rate", "fast", "finetune.1.optim.learning_rate", "a number"),
    ("pretrain.data.mixture", ["squad-bigbench"], "pretrain.data.mixture", "canary"),
    ("pretrain.data.mixture", ["squad-bigbench-sentences"], "pretrain.data.mixture", "canary"),
    ("evaluate.task", "boolq", "evaluate.task", "squad"),
    ("evaluate.limit", 0, "evaluate.limit", "at least 1"),
    ("evaluate.limits", 3, "evaluate.limits", "nearest is evaluate.limit"),
    ("seeds", [1, 1], "seeds", "each once"),
    ("seeds", [-1], "seeds", "must lie in"),
    ("seeds", [True], "seeds", "whole numbers"),
]


@pytest.mark.parametrize(("dotted", "value", "key", "says"), REFUSED, ids=[row[0] + str(row[1]) for row in REFUSED])
def test_what_does_not_fit_is_named_with_its_section(
    tmp_path: Path, dotted: str, value: object, key: str, says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(recipe_file(tmp_path, _put(dotted, value)))
    assert caught.value.key == key
    assert says in str(caught.value)


def test_a_key_that_stands_twice_is_seen_below_sections_too(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("pretrain:\n  train:\n    steps: 1\n    steps: 2\n")
    with pytest.raises(ConfigError, match=r"pretrain\.train\.steps='2': stands twice, in lines 3 and 4"):
        load_recipe(tmp_path / "r.yaml")


def test_a_mistake_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = recipe_file(tmp_path, _put("pretrain.log.run_dir", str(tmp_path / "run")))
    for words in ([file, "--jobs", 0], [tmp_path / "none.yaml"], [file, "--run_dir", file]):
        assert cli.main(["recipe", *map(str, words)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("altup-moe: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_a_directory_belongs_to_one_recipe(tmp_path: Path) -> None:
    claim(load_recipe(SHIPPED, tmp_path / "run"))
    claim(load_recipe(recipe_file(tmp_path, _put("seeds", [1, 7])), tmp_path / "run"))  # a seed more is no other one
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*")}
    assert load_config(tmp_path / "run" / "seed_7" / "control.yaml").train.seed == 7
    other = load_recipe(recipe_file(tmp_path, _put("finetune.2.train.steps", 5)), tmp_path / "run")
    with pytest.raises(UserError, match=r"finetune\.2\.train\.steps was \d+, is 5"):
        claim(other)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*.*")} == before


def test_errors_are_those_of_paired_figures() -> None:
    found = paired_difference(np.array([[1.0, 3.0, 2.0, 2.0], [3.0, 5.0, 4.0, 4.0]]))
    assert found.mean == 3.0
    assert found.by_seed == (2.0, 4.0)
    # Questions' means over seeds are 2, 4, 3, 3: variance 2/3 of 4. Seeds are 2 and 4: variance 2 of 2.
    assert found.error_questions == pytest.approx((2 / 3 / 4) ** 0.5)
    assert found.error_seeds == pytest.approx(1.0)
    assert found.better  # 3 > 2 * 1
    assert not paired_difference(np.array([[1.0, 3.0, 2.0, 2.0], [7.0, 9.0, 8.0, 8.0]])).better  # 5 < 2 * 3
    # A mean of 3.6 and an error of 1.4 would do, but one seed is below.
    assert not paired_difference(np.array([[-0.5, -0.5], [5.0, 5.0], [5.0, 5.0], [5.0, 5.0]])).better
    assert paired_difference(np.array([[1.0, 1.0]])).error_seeds is None


def test_answers_become_figures_and_a_table() -> None:
    references = [["the red cat", "cat"], ["two"], ["two"], ["Ann Lee"]]
    tuned = [["red cat", "two", "2", "Ann"], ["cat", "two", "two", "Bob"]]
    control = [["two"] * 4, ["", "two", "x", ""]]
    found = results("squad", [4, 9], squad_scores, references, tuned, control)
    assert found.majority_answer == "two"
    # F1 of "Ann" for "Ann Lee" is 2/3; "red cat" is "the red cat" without its article.
    assert found.f1.tuned == pytest.approx((100 * (1 + 1 + 0 + 2 / 3) / 4, 75.0))
    assert found.em.tuned == (50.0, 75.0)
    assert found.em.control == (50.0, 25.0)
    assert (found.f1.majority, found.em.majority) == (50.0, 50.0)
    assert found.em.over_control.by_seed == (0.0, 50.0)
    assert found.f1.over_majority.mean == pytest.approx((66.6667 + 75) / 2 - 50, abs=1e-3)
    lines = results_table(found).splitlines()
    assert [line.split()[0] for line in lines] == ["squad:", "F1", "seed", "4", "9", "mean", "max", "majority"] + (
        ["better"] * 2
    )
    assert lines[3].split() == ["4", "66.67", "50.00", "+16.67", "50.00", "50.00", "+0.00"]
    assert "better than un-pretrained: yes" not in lines[8]
    assert loss_line({"finetuned": [5.0, 5.5], "control": [6.0, 5.75]}) == (
        "loss of held-out answers, nats a token: fine-tuned 5.000 5.500 | un-pretrained 6.000 5.750 | mean -0.625"
    )
    assert json.loads(json.dumps(found.to_dict()))["f1"]["over_control"]["better"] is False


def _stage(tmp_path: Path, name: str, code: str, *after: str) -> Job:
    """A stage that runs some Python; it is done when it has written its file."""
    return Job(name, (sys.executable, "-c", code), tmp_path / f"{name}.log", (tmp_path / name).is_file, after)


def _touch(tmp_path: Path, name: str) -> str:
    return f"open({str(tmp_path / name)!r}, 'x')"  # 'x': twice would fail


SAVES = """
import signal, sys, time
def save(*_):
    {saved}
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
{up}
time.sleep(60)
"""


def _long(tmp_path: Path) -> Job:
    """A stage that says when it is up, and saves when it is asked to stop."""
    return _stage(tmp_path, "long", SAVES.format(saved=_touch(tmp_path, "saved"), up=_touch(tmp_path, "up")))


def test_a_stage_comes_after_the_one_that_it_starts_from(tmp_path: Path) -> None:
    recipe = load_recipe(SHIPPED, tmp_path)
    after = {stage.name: stage.after for stage in stages(recipe)}
    assert len(after) == 7 * len(recipe.seeds)
    chain = ["pretrain", "fine-tune, step 1", "fine-tune, step 2", "evaluate finetuned"]
    assert [after[f"seed 2: {name}"] for name in chain] == [(), *((f"seed 2: {name}",) for name in chain[:-1])]
    control = [f"seed 2: fine-tune from random weights, step {step}" for step in (1, 2)]
    assert [after[name] for name in (*control, "seed 2: evaluate control")] == [(), (control[0],), (control[1],)]


def test_stages_follow_each_other_and_are_not_repeated(tmp_path: Path) -> None:
    said: list[str] = []
    second = f"import os; assert os.path.exists({str(tmp_path / 'a')!r}); {_touch(tmp_path, 'b')}"
    both = [_stage(tmp_path, "a", _touch(tmp_path, "a")), _stage(tmp_path, "b", second, "a")]
    run_stages(both, 2, said.append)
    assert all(stage.done() for stage in both)
    (tmp_path / "b").unlink()
    run_stages(both, 2, said.append)
    assert [line.split()[0] for line in said] == ["a:", "b:", "a:", "b:"]
    assert said[2] == "a: done before"


@pytest.mark.parametrize("jobs", [1, 3])
def test_as_many_run_at_once_as_there_are_jobs(tmp_path: Path, jobs: int) -> None:
    # Each waits until all of them run, or fails where another one does.
    log = str(tmp_path / "up")
    beside = (
        f"import os, time; os.makedirs({log!r}, exist_ok=True); open({log!r} + '/' + name, 'x')\n"
        f"while len(os.listdir({log!r})) < {jobs}: time.sleep(0.01)\n"
        f"assert len(os.listdir({log!r})) == {jobs}\n" + (f"os.remove({log!r} + '/' + name)\n" if jobs == 1 else "")
    )
    apart = [_stage(tmp_path, name, f"name = {name!r}\n{beside}{_touch(tmp_path, name)}") for name in "abc"]
    run_stages(apart, jobs, lambda line: None)
    assert all(stage.done() for stage in apart)


def test_stages_share_the_cores_unless_the_user_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tell = f"import os; open({str(tmp_path / 'a')!r}, 'w').write(os.environ['OMP_NUM_THREADS'])"
    for given, expected in ((None, str(threads_each(3))), ("7", "7")):
        monkeypatch.setenv("OMP_NUM_THREADS", given) if given else monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        run_stages([_stage(tmp_path, "a", tell)], 3, lambda line: None)
        assert (tmp_path / "a").read_text() == expected
        (tmp_path / "a").unlink()


@pytest.mark.parametrize(
    ("ends", "kind", "says"),
    [
        ("print('altup-moe: error: x=3: no', file=sys.stderr); sys.exit(2)", UserError, "bad: x=3: no"),
        ("sys.exit(3)", StageFailed, "exit code 3; .*bad.log says why"),
        ("sys.exit(0)", StageFailed, "exit code 0 and no result; .*bad.log says why"),
        ("sys.exit(75)", StoppedBySignal, "^$"),
    ],
)
def test_one_that_fails_stops_the_others_which_save(
    tmp_path: Path, ends: str, kind: type[Exception], says: str
) -> None:
    bad = f"import os, sys, time\nwhile not os.path.exists({str(tmp_path / 'up')!r}): time.sleep(0.01)\n{ends}"
    later = _stage(tmp_path, "later", _touch(tmp_path, "later"), "bad")
    with pytest.raises(kind, match=says):
        run_stages([_long(tmp_path), _stage(tmp_path, "bad", bad), later], 2, lambda line: None)
    assert (tmp_path / "saved").exists()
    assert not later.done()


@pytest.mark.usefixtures("signals_are_heard")
def test_a_signal_stops_them(tmp_path: Path) -> None:
    def interrupt() -> None:
        while not (tmp_path / "up").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(StoppedBySignal):
        run_stages([_long(tmp_path)], 1, lambda line: None)
    thread.join()
    assert (tmp_path / "saved").exists()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A recipe of a model and data that need seconds."""
    bpe = train_bpe([TEXT + "question context Where is the? 0123456789"], 320, tmp_path / "bpe", 20)
    prepare_tokens((Document(f"d{n}", f"{n} {TEXT}" * 4) for n in range(12)), bpe, tmp_path / "tokens", "mine")
    rows = [
        {"question": f"Where is the {word}?", "context": TEXT, "answers": {"text": [word, "the " + word]}}
        for word in WORDS
    ]
    (tmp_path / "squad").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "squad" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def change(content: dict[str, Any]) -> None:
        content["seeds"] = [3]
        content["evaluate"] = {"task": "squad", "limit": 5}
        pretrain, steps = content["pretrain"], content["finetune"]
        pretrain["model"] |= {"num_layers": 2, "hidden_size": 16, "ffn_hidden_size": 24, "num_attention_heads": 2}
        pretrain["model"] |= {"num_query_groups": 2, "seq_length": 32, "decoder_seq_length": 12, "vocab_size": 320}
        pretrain["data"] = {"corpus": str(tmp_path / "tokens"), "valid_fraction": 0.3}
        pretrain["train"] |= {"steps": 2, "micro_batch_size": 2, "global_batch_size": 2, "eval_samples": 2}
        for step in steps:
            step["data"] = {"mixture": ["squad"], "task_files": {"squad": str(tmp_path / "squad")}}
            step["train"] = {"steps": 2, "eval_samples": 2}
        for part in (pretrain, *steps):
            part["optim"] |= {"warmup_steps": 1}

    return recipe_file(tmp_path, change)


def test_a_second_recipe_in_the_run_directory_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with locked_directory(tmp_path / "run", "recipe", "name another"):
        file = Path(__file__).parents[3] / "configs" / "paper_tiny.yaml"
        assert cli.main(["recipe", str(file), "--run_dir", str(tmp_path / "run")]) == 2
    said = capfd.readouterr().err
    assert said.startswith(f"altup-moe: error: {tmp_path / 'run'}: another recipe runs here (process {os.getpid()} on ")
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_figures_of_a_stage_come_from_every_line_that_can_be_read(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": n, "step_seconds": 0.5, "valid_loss": 4.0 - n}) for n in (1, 2, 3)]
    file.write_bytes(b"\n".join([b"", lines[0].encode(), b"\xff", lines[1].encode(), lines[2].encode(), b"null"]))
    assert train_seconds(tmp_path) == 1.5
    assert valid_loss(tmp_path) == 1.0
    file.write_text('{"step": 4, "step_seconds": 0.5}')
    with pytest.raises(UserError, match=r"metrics\.jsonl: its last line has no valid_loss"):
        valid_loss(tmp_path)


@pytest.mark.slow
def test_the_whole_path(tiny: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tiny.parent / "run"
    words = [str(tiny), "--run_dir", str(run_dir)]
    assert paper.main([*words, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found == json.loads((run_dir / "results.json").read_text())
    assert found["questions"] == 5
    assert len(found["f1"]["tuned"]) == 1
    assert found["fresh"]
    last = {arm: json.loads((run_dir / "seed_3" / arm / "metrics.jsonl").read_text().splitlines()[-1]) for arm in ARMS}
    assert found["valid_loss"] == {arm: [last[arm]["valid_loss"]] for arm in ARMS}
    assert set(found["train_seconds"]) == {"pretrained", "finetuned", "control"}
    # One run went on from the other's weights, the control did not; both did from the step before.
    seed = run_dir / "seed_3"
    first = {
        stage: json.loads((seed / stage / "metrics.jsonl").read_text().split("\n")[0]) for stage in (TUNED, CONTROL)
    }
    assert first[TUNED]["loss"] != first[CONTROL]["loss"]
    for stage, before in (("finetuned_1", "pretrained"), (TUNED, "finetuned_1"), (CONTROL, "control_1")):
        assert f"seed_3/{before}" in (seed / stage / "config.yaml").read_text()
    spent = [
        json.loads(line)["step_seconds"]
        for run in ("control_1", CONTROL)
        for line in (seed / run / "metrics.jsonl").read_text().splitlines()
    ]
    assert found["train_seconds"][CONTROL] == pytest.approx(sum(spent))
    lines = [json.loads(line) for line in (seed / CONTROL / "answers.jsonl").read_text().splitlines()]
    assert [line["reference"] for line in lines] == [[word, "the " + word] for word in WORDS[:5]]
    # Again: nothing is left to do, and nothing starts.
    monkeypatch.setattr(paper, "run_stages", None)
    assert paper.main(words) == 0
    assert "better than un-pretrained: " in capfd.readouterr().out
    # One evaluation is lost: it alone is left.
    (seed / CONTROL / "answers.jsonl").unlink()
    left = [stage.name for stage in stages(load_recipe(tiny, run_dir)) if not stage.done()]
    assert left == ["seed 3: evaluate control"]
