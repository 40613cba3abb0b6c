"""The client of launcher slurm, on a pretended SLURM: what it submits, and what it makes of what jobs leave."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml

from altup_moe.cli import main
from altup_moe.config import UserError
from altup_moe.config.exit_codes import EXIT_STOPPED
from altup_moe.study.read_study import load_study
from altup_moe.study.slurm.batches import BatchDirectory, Batches
from altup_moe.study.study_directory import StudyDirectory
from tests.unit.study.slurm.pretended import PretendedSlurm, measure, pretended, stays, train
from tests.unit.study.test_study_spec import SMALL


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretendedSlurm:
    return pretended(tmp_path, monkeypatch)


def names(*found: str) -> list[dict]:
    return [{"name": name} for name in found]


def test_rows_of_a_layout_are_an_array_and_measured_together(
    slurm: PretendedSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    study = slurm.study(names("a", "b", "c"))
    assert slurm.run(study) == 0
    jobs = slurm.jobs()
    assert [len(job["tasks"]) for job in jobs.values()] == [3, 1]
    assert slurm.begun == ["train a", "train b", "train c", "measure a+b+c"]
    rows = slurm.lines()
    assert {row.status for row in rows.values()} == {"done"}
    # The line's machine is that of the job, not of the login node.
    assert (rows["a"].hardware.processor, rows["a"].hardware.cores) == ("of the node", 3)
    said = capsys.readouterr().out
    assert said.count("trained ") == 3
    assert slurm.run(study) == 0
    assert len(slurm.jobs()) == 2


def test_a_row_alone_in_its_layout_measures_itself(slurm: PretendedSlurm) -> None:
    rows = [*names("a", "b"), {"name": "alone", "set": {"ranks": 2}}]
    study = slurm.study(rows, cluster={"ranks_per_node": 1})
    assert slurm.run(study) == 0
    assert slurm.begun == ["train a", "train b", "train alone", "measure a+b"]
    texts = {job: slurm.batch(job)[0].script.read_text() for job in slurm.jobs()}
    assert ["--nodes=2" in text for text in texts.values()] == [False, True, False]


def test_a_row_alone_is_not_measured_by_another_job_meanwhile(slurm: PretendedSlurm) -> None:
    study = slurm.study([*names("a", "b"), {"name": "alone", "set": {"ranks": 2}}])
    row = StudyDirectory(slurm.root).of_row(study.rows[2])
    slurm.acts["train alone"] = stays("RUNNING")
    slurm.between = [lambda: None, lambda: train(row), lambda: None, lambda: measure(row)]
    assert slurm.run(study) == 0
    assert slurm.begun == ["train a", "train b", "train alone", "measure a+b"]


def test_a_row_after_another_waits_for_it_in_the_queue(slurm: PretendedSlurm) -> None:
    study = slurm.study([*names("a", "b"), {"name": "then", "after": "a"}, {"name": "last", "after": "then"}])
    assert slurm.run(study) == 0
    every = "afterok:1_0:1_1:2_0:3_0"
    assert [job["after"] for job in slurm.jobs().values()] == [None, "afterok:1_0", "afterok:2_0", every]
    assert slurm.begun[2:4] == ["train then", "train last"]


def test_rows_after_a_failed_one_fail_with_its_reason(slurm: PretendedSlurm) -> None:
    study = slurm.study([*names("burns", "good"), {"name": "b", "after": "burns"}, {"name": "c", "after": "b"}])
    slurm.acts["train burns"] = slurm.ends(76, "the loss is not finite at step 1")
    assert slurm.run(study) == 1
    why = f"not trained: {study.rows[0].key} failed: the loss is not finite at step 1"
    assert {name: row.reason for name, row in slurm.lines().items()} == {
        "burns": "the loss is not finite at step 1", "b": why, "c": why, "good": None}  # fmt: skip
    assert slurm.begun == ["train burns", "train good", "measure good"]
    # Rows that failed begin anew when that is asked for.
    del slurm.acts["train burns"]
    assert slurm.run(study) == 1
    assert len(slurm.begun) == 3
    assert slurm.run(study, retry_failed=True) == 0
    assert slurm.begun[3:] == ["train burns", "train b", "train c", "measure burns+b+c"]


def test_a_job_that_cannot_begin_fails_with_what_it_printed(slurm: PretendedSlurm) -> None:
    def act(*task: object) -> str:
        directory = task[-1]
        assert isinstance(directory, BatchDirectory)
        directory.begun(0).unlink()
        directory.output(0).write_text("run.sbatch: line 9: module: command not found\n")
        return slurm.ends(127)(*task)

    slurm.acts["train a"] = act
    assert slurm.run(slurm.study(names("a"))) == 1
    assert slurm.lines()["a"].reason == "its job: run.sbatch: line 9: module: command not found"


def test_a_row_that_cannot_be_measured_does_not_take_the_others_with_it(slurm: PretendedSlurm) -> None:
    study = slurm.study(names("a", "bad", "c"))

    def act(world: PretendedSlurm, job: str, index: int, *batch: object) -> str:
        directory = world.batch(job)[0]
        directory.blame(0).write_text(study.rows[1].key)
        directory.log.write_text("RuntimeError: too slow\n")
        return world.ends(1)(world, job, index, world.batch(job)[1], directory)

    slurm.acts["measure a"] = act
    slurm.between = [lambda: None, slurm.acts.clear]
    assert slurm.run(study) == 1
    assert slurm.begun[3:] == ["measure a+bad+c", "measure a+c"]
    assert slurm.lines()["bad"].reason == "measuring: RuntimeError: too slow"
    assert slurm.lines()["c"].status == "done"


def test_a_client_killed_after_sbatch_finds_the_job_by_its_name(
    slurm: PretendedSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = slurm.study(names("a", "b"))
    with monkeypatch.context() as patch:
        patch.setattr(BatchDirectory, "set_job", killed)
        with pytest.raises(Killed):
            slurm.run(study)
    assert len(slurm.jobs()) == 1
    slurm.set("1", 0, "RUNNING")
    slurm.between = [lambda: slurm.set("1", 0, "PENDING")]
    assert slurm.run(study) == 0
    assert slurm.begun == ["train a", "train b", "measure a+b"]
    assert len(slurm.jobs()) == 2


def test_a_client_killed_before_sbatch_submits_anew_and_a_late_job_does_nothing(
    slurm: PretendedSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = slurm.study(names("a"))
    with monkeypatch.context() as patch:
        patch.setattr("altup_moe.study.slurm.commands.submit", killed)
        with pytest.raises(Killed):
            slurm.run(study)
    assert slurm.jobs() == {}
    assert slurm.run(study) == 0
    found = [directory.void.exists() for directory, _ in Batches(slurm.root / "slurm")]
    assert found == [True, False]
    assert slurm.begun == ["train a"]


def test_a_job_that_had_begun_when_it_was_not_found_is_kept(
    slurm: PretendedSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """squeue may forget a job (MinJobAge) whose number nobody noted."""
    study = slurm.study(names("a", "b"))
    with monkeypatch.context() as patch:
        patch.setattr(BatchDirectory, "set_job", killed)
        with pytest.raises(Killed):
            slurm.run(study)
    slurm.tick()
    for index in (0, 1):
        slurm.set("1", index, "PURGED")
    assert slurm.run(study) == 0
    assert slurm.begun == ["train a", "train b", "measure a+b"]
    assert not any(directory.void.exists() for directory, _ in Batches(slurm.root / "slurm"))


def test_a_cancelled_job_is_not_submitted_again_before_it_is_asked_for(
    slurm: PretendedSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    study = slurm.study([*names("a", "b"), {"name": "then", "after": "a"}])
    slurm.acts["train a"] = stays("CANCELLED")
    assert slurm.run(study) == EXIT_STOPPED
    said = capsys.readouterr().out
    assert "a seed 1: job 1_0 ended without a result (CANCELLED)" in said
    assert "the same command submits again what was cancelled or lost" in said
    # No job is submitted again and again for rows that wait for this one.
    assert len(slurm.jobs()) == 3
    # The layout's rows are measured together, so the other one waits.
    assert slurm.begun == ["train a", "train b"]
    assert slurm.lines() == {}
    slurm.acts.clear()
    assert slurm.run(study) == 0
    assert slurm.begun[2:] == ["train a", "train then", "measure a+b+then"]
    assert len(slurm.lines()) == 3


def test_a_result_may_come_later_than_its_job_goes(slurm: PretendedSlurm) -> None:
    study = slurm.study(names("a", "b"))
    slurm.acts["train a"] = stays("COMPLETED")
    row = StudyDirectory(slurm.root).of_row(study.rows[0])
    slurm.between = [*[lambda: None] * 3, lambda: train(row)]
    assert slurm.run(study) == 0
    assert slurm.begun == ["train a", "train b", "measure a+b"]


def test_slurm_may_be_away_for_a_while(slurm: PretendedSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    away = slurm.directory / "away"

    def goes() -> None:
        away.write_text("Unable to contact slurm controller (connect failure)")

    study = slurm.study(names("a", "b"))
    slurm.acts["train a"] = slurm.acts["train b"] = stays("RUNNING")
    slurm.between = [goes, lambda: None, lambda: None, away.unlink]
    slurm.between += [lambda: (slurm.acts.clear(), slurm.set("1", 0, "PENDING"), slurm.set("1", 1, "PENDING"))]
    assert slurm.run(study) == 0
    said = capsys.readouterr().out
    assert said.count("SLURM does not answer (squeue: error: Unable to contact slurm controller") == 1
    assert said.count("SLURM answers again") == 1
    assert len(slurm.jobs()) == 2
    goes()
    with pytest.raises(UserError, match="launcher slurm: squeue: error: Unable to contact"):
        slurm.run(slurm.study(names("a", "b", "c")))


def test_sbatch_without_an_answer_is_asked_again(slurm: PretendedSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between squeue's answer and sbatch's call SLURM goes: the batch is void, the rows are submitted once."""
    from altup_moe.study.slurm import commands

    submit, calls = commands.submit, []

    def first_fails(script: Path) -> str:
        calls.append(script)
        if len(calls) == 1:
            raise commands.SlurmAwayError("sbatch: error: Socket timed out")
        return submit(script)

    monkeypatch.setattr(commands, "submit", first_fails)
    assert slurm.run(slurm.study(names("a"))) == 0
    assert slurm.begun == ["train a"]
    assert len(slurm.jobs()) == 1


def test_what_slurm_refuses_is_the_user_s_affair(slurm: PretendedSlurm) -> None:
    (slurm.directory / "refuse").write_text("Batch job submission failed: Invalid partition name specified")
    study = slurm.study(names("a"), cluster={"partition": "gup"})
    with pytest.raises(UserError, match=r"^sbatch: error: .*Invalid partition name specified; `cluster` of"):
        slurm.run(study)
    (slurm.directory / "refuse").unlink()
    assert slurm.run(study) == 0
    assert slurm.begun == ["train a"]


def test_a_full_cluster_is_waited_for(slurm: PretendedSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    full = slurm.directory / "full"
    study = slurm.study([*names("a"), {"name": "two", "set": {"ranks": 2}}])
    before = full.write_text
    slurm.acts["train a"] = stays("RUNNING")
    from altup_moe.study.slurm import commands

    submit, calls = commands.submit, []

    def second_is_too_many(script: Path) -> str:
        calls.append(script)
        if len(calls) == 2:
            before("Batch job submission failed: Job violates accounting/QOS policy (job submit limit)")
        return submit(script)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "submit", second_is_too_many)
        slurm.between = [lambda: None, full.unlink, lambda: (slurm.acts.clear(), slurm.set("1", 0, "PENDING"))]
        assert slurm.run(study) == 0
    assert capsys.readouterr().out.count("SLURM takes no more jobs now") == 1
    assert sorted(slurm.begun) == ["train a", "train a", "train two"]


def test_no_more_rows_run_than_may(slurm: PretendedSlurm) -> None:
    assert slurm.run(slurm.study(names("a", "b", "c")), max_running=2) == 0
    assert [job["most"] for job in slurm.jobs().values()] == ["2", ""]
    # Rows of several shapes, and rows that wait for others, are kept back instead.
    rows = [*names("d", "e"), {"name": "f", "set": {"ranks": 2}}, {"name": "g", "after": "d"}]
    study = slurm.study([{"set": {"optim.learning_rate": 0.01 * (n + 1), **row.pop("set", {})}, **row}
                         for n, row in enumerate(rows)])  # fmt: skip
    assert slurm.run(study, max_running=2) == 0
    assert [(slurm.rows_of(job), job_["after"]) for job, job_ in list(slurm.jobs().items())[2:]] == [
        (["d", "e"], None), (["f"], None), (["g"], None), (["d", "e", "g"], None)]  # fmt: skip


def test_a_ladder_grows_while_its_other_rows_train(slurm: PretendedSlurm) -> None:
    file = slurm.directory / "ladder.yaml"
    tune = {"optim.learning_rate": [0.001, 0.002, 0.004]}
    ladder = {"sizes": [32], "tokens_per_parameter": [1, 2], "families": [{"name": "wide"}], "tune": tune}
    base = {**SMALL["base"], "optim": {"warmup_steps": 5}}  # type: ignore[dict-item]
    content = {"base": base, "seeds": [1], "launcher": "slurm", "ladder": ladder, "measure": {"rounds": 1}}
    file.write_text(yaml.safe_dump(content))
    assert slurm.run(load_study(file)) == 0
    # All losses are equal, so the lowest rate is the best one and the grid goes on below it, twice.
    tries = [f"train wide-d32-learning_rate-{rate:g}" for rate in (0.001, 0.002, 0.004, 0.0005, 0.00025)]
    assert slurm.begun[:5] == tries
    assert slurm.begun[5:] == ["train wide-d32-t2", "train wide-d32-t1", "measure wide-d32-t2+wide-d32-t1"]
    assert [job["after"] for job in slurm.jobs().values()][-2:] == [f"afterok:{len(slurm.jobs()) - 2}_0", None]
    assert len(slurm.lines()) == 7
    assert slurm.run(load_study(file)) == 0
    assert len(slurm.begun) == 8


def test_ctrl_c_leaves_the_jobs_or_cancels_them(slurm: PretendedSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    study = slurm.study(names("a", "b"))
    slurm.acts["train a"] = slurm.acts["train b"] = stays("RUNNING")
    slurm.between = [lambda: os.kill(os.getpid(), signal.SIGINT)]  # before the queue is looked at again
    assert slurm.run(study) == EXIT_STOPPED
    said = capsys.readouterr().out
    assert "jobs go on in SLURM: 1_0 1_1 2_0; the same command shows them again" in said
    assert "the same command goes on" in said
    assert slurm.calls("scancel") == 0
    slurm.between = [lambda: os.kill(os.getpid(), signal.SIGINT)]
    assert slurm.run(study, cancel_on_interrupt=True) == EXIT_STOPPED
    assert [job["tasks"] for job in slurm.jobs().values()] == [["CANCELLED", "CANCELLED"], ["CANCELLED"]]
    slurm.acts.clear()
    assert slurm.run(study) == 0
    assert len(slurm.lines()) == 2


def test_status_says_what_the_jobs_do(slurm: PretendedSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    study = slurm.study(names("runs", "again", "waits"))
    slurm.acts["train runs"] = stays("RUNNING")
    slurm.acts["train again"] = stays("PENDING")
    slurm.between = [lambda: None, lambda: slurm.set("1", 2, "CANCELLED"), lambda: os.kill(os.getpid(), signal.SIGINT)]
    slurm.acts["train waits"] = stays("RUNNING")
    assert slurm.run(study) == EXIT_STOPPED
    capsys.readouterr()

    def states() -> list[str]:
        assert main(["study", "status", str(slurm.root)]) == 0
        lines = [line.split("│") for line in capsys.readouterr().out.splitlines() if line.count("│") > 3]
        return [line[3].strip() for line in lines]

    assert states() == ["training", "requeued", ""]
    (slurm.directory / "bin" / "squeue").unlink()
    assert states() == ["training", "training", "training"]


def test_options_are_those_of_the_launcher(slurm: PretendedSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"name": "a", "set": {"train.micro_batch_size": 1}}
    slurm.study([row], ranks=4, cluster={"ranks_per_node": 2})
    run = ["study", "run", str(slurm.directory / "small.yaml"), "--dir", str(slurm.root)]
    for words, says in (
        (["--jobs", "2"], "--max-running limits those of launcher slurm"),
        (["--launcher", "torchrun", "--max-running", "2"], "is for launcher slurm; --launcher slurm would fit"),
        (["--launcher", "torchrun", "--cancel-on-interrupt"], "is for launcher slurm"),
        (["--max-running", "0"], "must be at least 1"),
    ):
        assert main([*run, *words]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert main([*run, "--dry-run"]) == 0
    assert "slurm: 1 x 2 node(s), 2 rank(s) on each, 1 thread(s) a rank" in capsys.readouterr().out
    assert not slurm.root.exists()
    (slurm.directory / "bin" / "sbatch").unlink()
    os.environ["PATH"] = str(slurm.directory / "bin")  # put back by the fixture
    assert main(run) == 2
    assert "sbatch: not found; on a login node" in capsys.readouterr().err


class Killed(BaseException):
    """kill -9, as far as one process can pretend it."""


def killed(*_: object) -> None:
    raise Killed
