"""A study's directory: what a kill leaves is mended, and what is written is what is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from altup_moe.cli import main
from altup_moe.commands.study_plan import HEADS
from altup_moe.config import UserError
from altup_moe.config.load import load_config
from altup_moe.model.flops import flops_per_token
from altup_moe.parallel.counts import count_parameters
from altup_moe.report.formatting import count
from altup_moe.study.collect_row import curve, done_row, failed_row, spread_of_turns, worst_rank
from altup_moe.study.live_table import study_table
from altup_moe.study.progress import snapshot
from altup_moe.study.read_study import load_study
from altup_moe.study.records import Spread
from altup_moe.study.run import measured_together
from altup_moe.study.spec import Study
from altup_moe.study.study_directory import StudyDirectory, write_json
from tests.unit.study.test_study_spec import SMALL


@pytest.fixture
def study(tmp_path: Path) -> Study:
    moe = {"name": "moe", "set": {"moe.num_experts": 4, "moe.ffn_hidden_size": 64, "moe.top_k": 2}}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "seeds": [7], "rows": [{"name": "dense"}, moe], "measure": {"rounds": 1}}))
    return load_study(file)


def step(number: int, **more: float | None) -> dict:
    return {"step": number, "lm_loss": 6 - number / 10, "step_seconds": 0.5, "memory_gib": 0.25 * number, **more}


def train(directory: StudyDirectory, study: Study, row: int, steps: int) -> None:
    """What a row's processes write."""
    row_directory = directory.of_row(study.rows[row])
    row_directory.run_dir.mkdir(parents=True)
    with open(row_directory.run_dir / "metrics.jsonl", "w") as file:
        for number in range(1, steps + 1):
            valid = {"valid_loss": 5.0} if number == 8 else {}
            file.write(str(step(number, **valid)).replace("'", '"') + "\n")
        file.write('{"step": 9, "lm_l')
    write_json(row_directory.root / "memory-1.json", {"gib": 3.5})


def finish(directory: StudyDirectory, study: Study, row: int) -> None:
    row_directory = directory.of_row(study.rows[row])
    figures = {"valid_loss": 5.1, "valid_bits_per_byte": 2.2, "experts": None, "problem": None, "device": "cpu"}
    write_json(row_directory.trained, {**figures, "wall_seconds": 9.0})
    exchange = {"exchange_ms": [[4.0, 6.0], [4.0, 6.0]], "exposed_ms": [[3.0, 1.0], [2.0, 1.0]]}
    write_json(row_directory.measured("steps", 0), {"seconds": [0.3, 0.1, 0.2], **exchange})
    write_json(row_directory.measured("texts", 0), {"prefill_seconds": [0.01], "decode_seconds": [0.02]})


def test_a_directory_that_is_no_study_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "small.yaml"  # as `study` wrote it
    file.write_text(yaml.safe_dump({**SMALL, "seeds": [7]}))
    run, near = tmp_path / "run", tmp_path / "studies" / "near"
    run.mkdir()
    (run / "config.yaml").write_text("{}\n")
    near.mkdir(parents=True)
    (near / "study.yaml").write_text("{}\n")
    for words, says in (
        (["run", str(file), "--dir", str(run)], f"--dir='{run}': is the directory of a training run"),
        (["run", str(file), "--dir", str(file)], f"{file} is a file; a directory would fit"),
        (["report", str(run)], f"is a training run, no study; type altup-moe show {run}"),
        (["status", str(run)], f"is a training run, no study; type altup-moe show {run}"),
        (["report", str(near.with_name("neer"))], f"there is no such directory; nearest study is {near}"),
        (["report", str(near / "study.yaml")], f"is a file; a study is a directory; nearest study is {near}"),
        (["report", str(tmp_path)], "holds neither rows.jsonl nor study.yaml, so it is no study"),
    ):
        assert main(["study", *words]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert [path.name for path in run.iterdir()] == ["config.yaml"]


def test_a_dry_run_lists_the_rows_and_writes_nothing(
    tmp_path: Path, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    file, directory = tmp_path / "small.yaml", StudyDirectory(tmp_path / "study")
    words = ["study", "run", str(file), "--dir", str(directory.root), "--dry-run"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [word for head in HEADS for word in head.split()]
    row, counts = study.rows[1], count_parameters(study.rows[1].config)
    steps = row.config.train.steps
    figures = [f"{counts.total:,}", f"{counts.active:,}", count(flops_per_token(row.config))]
    assert lines[2].split() == ["moe", "7", *figures, f"{steps * row.tokens_per_step:,}", str(steps), "1"]
    assert "2 rows, 0 of them finished" in lines[-1]
    assert not directory.root.exists()
    train(directory, study, 1, 8)
    directory.add(failed_row(study, study.rows[1], directory, "it burnt"))
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[-1] == "failed"
    assert "2 rows, 1 of them finished" in lines[-1]


def test_the_table_says_which_loss_it_shows(study: Study, tmp_path: Path) -> None:
    found = study_table("small", snapshot(study, StudyDirectory(tmp_path / "study"), {}, {}, 2))
    assert [column.header for column in found.columns][-1] == "train loss"


def test_a_row_s_line_comes_from_its_files(tmp_path: Path, study: Study) -> None:
    directory = StudyDirectory(tmp_path / "study")
    train(directory, study, 1, 8)
    finish(directory, study, 1)
    row = done_row(study, study.rows[1], directory)
    assert (row.name, row.seed, row.status, row.steps, row.tokens) == ("moe", 7, "done", 8, 1024)
    assert row.config_hash == study.rows[1].config_hash
    assert row.train_seconds == 4.0
    # Two experts of four meet a token: two of three matrices of 32 x 64 in two layers are left out.
    assert row.parameters is not None
    assert row.active_parameters == row.parameters - 2 * 2 * 3 * 32 * 64
    assert row.quality is not None
    assert (row.quality.valid_loss, row.quality.train_loss) == (5.1, pytest.approx(5.2))
    assert row.latency is not None
    assert row.latency.train_step == Spread(200.0, 300.0, 100.0, 300.0, 3)
    assert row.latency.train_tokens_per_second == pytest.approx(128 / 0.2)
    assert (row.latency.all_to_all_ms, row.latency.exposed_ms) == (4.0, 2.5)
    assert row.latency.peak_memory_gib == 3.5
    assert [(point.step, point.valid_loss) for point in row.curve][-2:] == [(7, None), (8, 5.0)]
    directory.add(row)
    assert directory.finished() == {row.config_hash: row}


def test_a_line_cut_short_is_removed_and_a_damaged_one_is_said(tmp_path: Path, study: Study) -> None:
    directory = StudyDirectory(tmp_path)
    row = failed_row(study, study.rows[0], directory, "no luck")
    directory.add(row)
    file = tmp_path / "rows.jsonl"
    whole = file.read_text()
    file.write_text(whole + whole[:40])
    assert list(directory.finished().values()) == [row]
    assert file.read_text() == whole
    file.write_text(whole[:40] + "\n" + whole)
    with pytest.raises(UserError, match="line 1 is no row"):
        directory.finished()


def test_a_damaged_line_of_a_row_s_metrics_hides_no_other(tmp_path: Path, study: Study) -> None:
    directory = StudyDirectory(tmp_path)
    train(directory, study, 0, 4)
    row_directory = directory.of_row(study.rows[0])
    file = row_directory.run_dir / "metrics.jsonl"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([b"", lines[0], b"\xff", lines[1][:9], *lines[2:], b"null"]))
    assert [line["step"] for line in row_directory.metrics()] == [1, 3, 4]


def test_the_lock_is_one_line_for_the_second(tmp_path: Path) -> None:
    with (
        StudyDirectory(tmp_path).locked(),
        pytest.raises(UserError, match="another study runs here"),
        StudyDirectory(tmp_path).locked(),
    ):
        pass
    with StudyDirectory(tmp_path).locked():
        pass


def test_what_is_laid_out_reads_back_and_rows_keep_their_identity(tmp_path: Path, study: Study) -> None:
    directory = StudyDirectory(tmp_path / "study")
    directory.lay_out(study)
    back = directory.study()
    assert [(row.key, row.config_hash) for row in back.rows] == [(row.key, row.config_hash) for row in study.rows]
    assert back.measure == study.measure


def test_a_row_after_another_starts_from_its_run_and_reads_back(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    rows = [{"name": "first"}, {"name": "then", "after": "first", "set": {"optim.learning_rate": 0.1}}]
    file.write_text(yaml.safe_dump({**SMALL, "seeds": [7], "rows": rows}))
    directory, study = StudyDirectory(tmp_path / "study"), load_study(file)
    directory.lay_out(study)
    first, then = study.rows
    written = load_config(directory.of_row(then).config)
    assert written.checkpoint.initial_load_path == str(directory.of_row(first).run_dir)
    assert load_config(directory.of_row(first).config).checkpoint.initial_load_path is None
    back = directory.study().rows
    assert [(row.key, row.config_hash) for row in back] == [(row.key, row.config_hash) for row in study.rows]
    assert back[1].after == back[0]
    assert "after" not in yaml.safe_load((directory.root / "study.yaml").read_text())["rows"][0]


def test_forgotten_rows_begin_anew_and_others_stay(tmp_path: Path, study: Study) -> None:
    directory = StudyDirectory(tmp_path)
    for number, row in enumerate(study.rows):
        train(directory, study, number, 2)
        directory.add(failed_row(study, row, directory, "no luck"))
    directory.forget(study.rows[:1])
    assert [row.name for row in directory.finished().values()] == ["moe"]
    assert [directory.of_row(row).root.exists() for row in study.rows] == [False, True]


def test_a_snapshot_counts_and_foresees(tmp_path: Path, study: Study) -> None:
    directory = StudyDirectory(tmp_path)
    train(directory, study, 0, 4)
    found = snapshot(study, directory, {}, {study.rows[0].key: "training"}, lanes=1)
    assert [(each.state, each.steps) for each in found.states] == [("training", 4), ("waiting", 0)]
    assert found.left is not None
    finish(directory, study, 0)
    later = snapshot(study, directory, {}, {}, lanes=1)
    assert later.summary().startswith("0 of 2 rows done, 1 trained, 1 waiting, 0 failed, about ")
    done = {row.config_hash: failed_row(study, row, directory, "no luck") for row in study.rows}
    assert snapshot(study, directory, done, {}, lanes=1).summary() == "0 of 2 rows done, 2 failed"


def test_a_curve_is_thinned_and_keeps_validations_and_the_end(study: Study) -> None:
    lines = [step(n, **({"valid_loss": 1.0} if n == 151 else {})) for n in range(1, 252)]
    lines[5] = step(6, lm_loss=None)
    points = curve(study.rows[0], lines)
    assert len(points) < 100
    assert {151, 251} <= {point.step for point in points}
    assert 6 not in {point.step for point in points}
    assert points[-1].tokens == 251 * 128


def test_a_spread_is_of_all_turns() -> None:
    assert spread_of_turns([n / 1000 for n in range(1, 101)]) == pytest.approx(Spread(50.5, 95.0, 1.0, 100.0, 100))


def test_the_exposed_time_is_of_the_rank_that_waited_longest() -> None:
    assert worst_rank([], []) == (None, None)
    assert worst_rank([[9.0, 5.0], [9.0, 7.0]], [[1.0, 3.0], [1.0, 5.0]]) == (6.0, 4.0)


def test_rows_are_measured_together_where_one_start_can(study: Study) -> None:
    one, two = study.rows
    there = replace(two, ranks=2, launcher="netlab", rate="9mbit")
    assert measured_together([one, two], "steps") == [[one, two]]
    assert measured_together([one, two, there], "steps") == [[one, two], [there]]
    assert measured_together([one, two, there], "texts") == [[one, two, there]]
