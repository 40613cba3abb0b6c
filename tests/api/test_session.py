"""A session takes the steps that the command takes, saves and loads what it does, and leaves nothing behind."""

from __future__ import annotations

import math
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from altup_moe import api
from altup_moe.checkpoint import save_threads
from altup_moe.parallel import release
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import text_run, train_quietly

pytestmark = pytest.mark.distributed


def changed(config: api.RunConfig, **sections: dict[str, Any]) -> api.RunConfig:
    return replace(config, **{name: replace(getattr(config, name), **keys) for name, keys in sections.items()})


def some_run(directory: Path, name: str, layout: str = "one", **train: Any) -> api.RunConfig:
    return text_run(layout, directory, name, train={"steps": 4, "eval_interval": 2, **train})


def recorded(config: api.RunConfig) -> list[tuple[float, ...]]:
    """Loss, gradient norm and learning rate of each line of metrics.jsonl."""
    lines = api.read_run(config.log.run_dir).metrics()
    return [(line["step"], line["loss"], line["grad_norm"], line["learning_rate"]) for line in lines]


def valid_losses(config: api.RunConfig) -> dict[int, float]:
    lines = api.read_run(config.log.run_dir).metrics()
    return {line["step"]: line["valid_loss"] for line in lines if "valid_loss" in line}


def alone() -> None:
    """The rank as a process that no launcher has started."""
    dist.destroy_process_group()
    for key in LAUNCHER:
        os.environ.pop(key, None)


def stepped_in_two_sessions(config: api.RunConfig) -> list[api.StepMetrics]:
    alone()
    with api.session(config) as run:
        records = [run.step(), run.step(validate=True)]
        run.save(wait=False)
    with api.session(config) as run:
        assert run.steps_done == 2
        records += [run.step(), run.step(validate=True)]
        run.save()
    return records


def test_steps_are_the_commands(tmp_path: Path) -> None:
    """Bit for bit, across a save and a resume; and the record that is returned is the line that is written."""
    config = some_run(tmp_path, "command")
    assert run_ranks(1, train_quietly, config, 1) == [0]
    own = some_run(tmp_path, "session")
    (records,) = run_ranks(1, stepped_in_two_sessions, own)
    assert recorded(own) == recorded(config)
    assert valid_losses(own) == valid_losses(config)
    assert [record.loss for record in records] == [row[1] for row in recorded(config)]
    assert records[1].valid_loss == valid_losses(config)[2]
    with api.read_checkpoint(config.log.run_dir) as a, api.read_checkpoint(own.log.run_dir) as b:
        assert a.names() == b.names()
        assert all((a.numpy(name) == b.numpy(name)).all() for name in a.names())


class Numbered:
    """Sample n holds tokens that only n says."""

    def __init__(self, config: api.RunConfig) -> None:
        self.model = config.model

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(self.model.vocab_size, (self.model.seq_length + 1,), generator=generator)
        return {"tokens": ids[:-1], "labels": ids[1:], "loss_mask": torch.ones(self.model.seq_length)}


def own_batches(config: api.RunConfig) -> list[float]:
    with api.session(config, data=False) as run:
        data = Numbered(config)
        losses = [run.step(run.batches(data)).loss, run.step([vars(one) for one in run.batches(data)]).loss]
        found = run.validate(data, samples=5)
        assert math.isnan(found.bits_per_byte)
        assert found.tokens == 5 * config.model.seq_length
        # The world is the caller's: Megatron's ranks are in it.
        assert run.topology.world_size == dist.get_world_size()
        before = run.step([api.Batch(b.tokens, b.labels, torch.zeros_like(b.loss_mask)) for b in run.batches(data)])
        assert before.lm_loss == 0.0
        return [*losses, found.loss]


def test_batches_of_ones_own_on_two_ranks_are_one_ranks(tmp_path: Path) -> None:
    one, two = some_run(tmp_path, "one"), some_run(tmp_path, "ep2", "ep2")
    (expected,) = run_ranks(1, own_batches, one)
    first, second = run_ranks(2, own_batches, two)
    assert first == second
    assert first == pytest.approx(expected, rel=1e-5)
    assert not (tmp_path / "one/tokenizer").exists()


def threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))


LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def launcher_variables() -> dict[str, str | None]:
    """What a launcher sets, and a later program would take for one. (Libraries set others at their first use.)"""
    return {name: os.environ.get(name) for name in LAUNCHER}


def nothing_left(config: api.RunConfig, with_world: bool) -> list[Any]:
    """What differs after a session, one that fails, and one after it."""
    if not with_world:
        alone()
    environment = launcher_variables()
    with api.session(config) as run:  # the first one starts threads that torch keeps
        run.step()
    write = save_threads.write_files

    def slow_write(*args: Any) -> Any:
        time.sleep(0.5)
        return write(*args)

    before, groups = threads(), len(release.groups())
    problems: list[Any] = []
    for fails in (False, True, False):
        try:
            with api.session(config) as run:
                run.step()
                if fails:
                    save_threads.write_files = slow_write
                run.save(wait=False)
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            problems.append("interrupted")
        finally:
            save_threads.write_files = write
        left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        more = len(threads() - before)
        same = (
            launcher_variables() == environment,
            len(release.groups()) == groups,
            dist.is_initialized() == with_world,
        )
        problems += [(more, "checkpoint" in left)] if more > 0 or "checkpoint" in left else []
        problems += [same] if not all(same) else []
    return problems


@pytest.mark.parametrize("with_world", [False, True])
def test_nothing_is_left_behind(with_world: bool, tmp_path: Path) -> None:
    config = changed(some_run(tmp_path, "run", steps=9), checkpoint={"resume": True})
    assert run_ranks(1, nothing_left, config, with_world) == [["interrupted"]]


def loaded(config: api.RunConfig, source: Path, others: api.RunConfig) -> dict[str, Any]:
    """What loading into an open session does."""
    found: dict[str, Any] = {}
    with api.session(config) as run:
        fresh = run.validate().loss
        found["weights"] = run.load(source, weights_only=True), run.validate().loss
        found["rate"] = run.step().learning_rate
        found["all"] = run.load(source), run.validate().loss
        found["fresh"], found["next"] = fresh, run.step().step
        try:
            run.load(source.parent.parent.parent / "nowhere")
        except api.UserError as error:
            found["nowhere"] = str(error)
    with api.session(others, data=False) as run:
        try:
            run.load(source)
        except api.ConfigError as error:
            found["other"] = error.key
    return found


def test_a_checkpoint_of_another_run_is_loaded(tmp_path: Path) -> None:
    source = some_run(tmp_path, "source", stop_after=2)
    assert run_ranks(1, train_quietly, source, 1) == [0]
    (latest,) = api.read_run(source.log.run_dir).checkpoints()
    config = some_run(tmp_path, "here")
    others = changed(some_run(tmp_path, "others"), model={"ffn_hidden_size": 96})
    (found,) = run_ranks(1, loaded, config, latest, others)
    trained = valid_losses(source)[2]
    assert found["weights"] == (0, pytest.approx(trained, rel=1e-6))
    assert found["all"] == (2, pytest.approx(trained, rel=1e-6))
    assert found["fresh"] > trained
    assert found["rate"] == recorded(source)[0][3]
    assert found["next"] == 3
    assert "nowhere" in found["nowhere"]
    assert found["other"] == "model.ffn_hidden_size"
    # The records go on behind the checkpoint's step.
    assert [row[0] for row in recorded(config)] == [1, 3]


def mistakes(config: api.RunConfig) -> dict[str, str]:
    """What each mistake says."""
    said: dict[str, str] = {}

    def tried(name: str, function: Any) -> None:
        try:
            function()
        except (ValueError, TypeError) as error:
            said[name] = f"{type(error).__name__}: {error}"

    closed = api.session(config, data=False)
    tried("closed", closed.step)
    with api.session(config, data=False) as run:
        batch = run.batches(Numbered(config))[0]
        tried("nested", api.session(changed(config, log={"run_dir": config.log.run_dir + "2"}), data=False).open)
        tried("opened", run.open)
        tried("no data", run.step)
        tried("no samples", lambda: run.validate(Numbered(config)))
        tried("number", lambda: run.step([batch]))
        tried("shape", lambda: run.step([{"tokens": batch.tokens[:, 1:], "labels": batch.labels}] * run.micro_batches))
        run.step(run.batches(Numbered(config)))
        tried("done", lambda: run.step(run.batches(Numbered(config))))
    tried("layout", api.session(changed(config, parallel={"tensor": 2})).open)
    tried("data", api.session(changed(config, data={"corpus": "nowhere"})).open)
    return said


def test_mistakes_are_told(tmp_path: Path) -> None:
    (said,) = run_ranks(1, mistakes, some_run(tmp_path, "run", steps=1))
    assert said["closed"] == "UserError: the session is not open: use it in a with block, or call open()"
    assert "is open in this process; close it first" in said["nested"]
    assert "is open already" in said["opened"]
    assert said["no data"].startswith("ValueError: this session has no data of its own")
    assert said["no samples"].startswith("ValueError: samples: say how many")
    assert said["number"] == "ValueError: batches: 1 micro-batches; this rank has 4 in a step"
    assert said["shape"].startswith("ValueError: batches[0].tokens has the shape [2, 31]; ")
    assert said["shape"].endswith("= [2, 32] would fit")
    assert said["done"] == "ConfigError: train.steps=1: all of them are done; a larger number would fit"
    assert said["layout"].startswith("ConfigError: parallel.tensor=2: ")
    assert said["data"].startswith("ConfigError: data.corpus='nowhere': there is no file nowhere.idx")


def used(config: api.RunConfig) -> tuple[Any, ...]:
    alone()
    run = api.train(config, until=lambda metrics: metrics.step == 2)
    model = api.load_model(run.path)
    texts = [api.generate(model, "the", max_new_tokens=5, temperature=0), api.generate(run.path, "the", temperature=0)]
    return run, api.evaluate(model, samples=3), texts, api.evaluate(run.path).loss


def test_train_evaluate_generate(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    config = some_run(tmp_path, "run")
    (found,) = run_ranks(1, used, config)
    run, few, (short, long), loss = found
    assert run == api.read_run(config.log.run_dir)
    assert not run.complete
    assert run.latest is not None
    assert run.latest.name == "step_00000002"
    assert [line["step"] for line in run.metrics()] == [1, 2]
    assert (few.step, few.samples, few.run) == (2, 3, config.log.run_dir)
    assert few.perplexity == pytest.approx(math.exp(few.loss))
    assert loss == pytest.approx(run.metrics()[-1].get("valid_loss", loss), rel=1e-4)
    assert long.startswith(short)
