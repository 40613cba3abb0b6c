"""What is measured is the trained model: its steps, its exchanges, its texts; and what it does on held-out text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from altup_moe.config import RunConfig
from altup_moe.config.load import save_config
from altup_moe.data.document import Document
from altup_moe.data.prepare import prepare_tokens
from altup_moe.data.tokenizer import Tokenizer, train_bpe
from altup_moe.inference.evaluate import evaluate_samples
from altup_moe.inference.load_run import load_run
from altup_moe.model.reference.build import reference_model
from altup_moe.study.latency import Texts, TrainedSteps, measure_steps, measure_texts
from altup_moe.study.spec import MeasureSpec
from altup_moe.study.study_directory import RowDirectory, read_json_or_none
from altup_moe.study.trained import held_out_figures
from altup_moe.train.mixture import run_samples
from tests.distributed.ranks import run_ranks
from tests.unit.train.runs import TEXT, tiny, write_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Path]:
    directory = tmp_path_factory.mktemp("data")
    bpe = train_bpe([TEXT], 280, directory / "bpe")
    prepare_tokens((Document(f"d{n}", f"{n} {TEXT}") for n in range(12)), bpe, directory / "tokens", "mine")
    return bpe, directory / "tokens"


def trained_row(root: Path, data: tuple[Tokenizer, Path], **sections: dict) -> RunConfig:
    """The directory of a row whose run is finished."""
    bpe, prefix = data
    config = tiny(data={"corpus": str(prefix)}, **sections)
    write_run(root / "run", config, bpe)
    config = replace(config, log=replace(config.log, run_dir=str(root / "run")))
    save_config(config, root / "config.yaml")
    return config


def steps_of(root: str, config: RunConfig) -> tuple[list[float], bool]:
    """Losses of steps, and whether the weights are the same after them."""
    from altup_moe.parallel.topology import topology
    from altup_moe.train.step import train_step

    with topology(config.parallel) as topo:
        steps = TrainedSteps(config, topo)
        before = [p.detach().clone() for chunk in steps.engine.chunks for p in chunk.parameters()]
        losses = [train_step(steps.engine, steps.batches, config, topo).lm_loss for _ in range(2)]
        assert steps.timed() > 0
        after = [p for chunk in steps.engine.chunks for p in chunk.parameters()]
        return losses, all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.slow
@pytest.mark.distributed
def test_steps_are_the_trained_models_and_leave_its_weights_alone(tmp_path: Path, data: tuple) -> None:
    config = trained_row(tmp_path, data, optim={"weight_decay": 0.5, "learning_rate": 0.1})
    run = load_run(tmp_path / "run")
    samples = run_samples(config)
    nats, tokens = 0.0, 0.0
    for first in (0, 2):
        rows = [samples.train[first], samples.train[first + 1]]
        batch = [torch.stack([row[key] for row in rows]) for key in ("tokens", "labels", "loss_mask")]
        found = run.model.losses(*batch)
        nats, tokens = nats + float(found.lm_sum), tokens + float(found.num_tokens)
    ((losses, same),) = run_ranks(1, steps_of, str(tmp_path), config)
    assert losses[0] == pytest.approx(nats / tokens, rel=1e-5)
    assert losses[1] == losses[0]
    assert same


def measured(roots: list[Path], measure: MeasureSpec) -> int:
    return measure_steps(roots, 0, measure)


@pytest.mark.distributed
def test_a_round_measures_rows_in_turn_and_the_exchanges_of_two_ranks(tmp_path: Path, data: tuple) -> None:
    roots = [tmp_path / name for name in ("inline", "deferred")]
    for root in roots:
        trained_row(root, data, parallel={"expert": 2}, overlap={"mixing": root.name}, train={"micro_batch_size": 2})
    assert run_ranks(2, measured, roots, MeasureSpec(train_steps=5, warmup=1, rounds=2, recorded=4)) == [0, 0]
    for root in roots:
        found = read_json_or_none(RowDirectory(root).measured("steps", 0))
        assert found is not None
        # A round's half, rounded up.
        assert len(found["seconds"]) == 3
        assert [len(ranks) for ranks in found["exchange_ms"]] == [2, 2]
        assert all(ms > 0 for key in ("exchange_ms", "exposed_ms") for ranks in found[key] for ms in ranks)


def test_texts_are_read_and_written_as_generation_does(tmp_path: Path, data: tuple) -> None:
    trained_row(tmp_path, data, model={"num_layers": 2})
    with torch.inference_mode():
        texts = Texts.of(tmp_path, 9)
        assert texts.read() > 0
        written = [int(texts.token)]
        for _ in range(6):
            assert texts.write() > 0
            written.append(int(texts.token))
        expected = texts.model.generate(
            texts.prompt, attention_mask=torch.ones_like(texts.prompt), max_new_tokens=7, do_sample=False,
            eos_token_id=-1,
        )  # fmt: skip
    assert written == expected[0, 9:].tolist()
    assert measure_texts([tmp_path], 1, MeasureSpec(prompts=3, decode_tokens=40, rounds=2, warmup=1)) == 0
    found = read_json_or_none(RowDirectory(tmp_path).measured("texts", 1))
    # Twenty tokens are more than there is room for: the text is begun again.
    assert found is not None
    assert (len(found["prefill_seconds"]), len(found["decode_seconds"])) == (2, 20)


def test_an_encoder_decoder_reads_the_prompt_and_answers() -> None:
    config = tiny(model={"arch": "t5", "num_query_groups": 2, "decoder_seq_length": 10}, moe={"num_experts": 0})
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 299, "pad_token_id": 0, "decoder_start_token_id": 0}
    model = reference_model(config, **special).eval()
    prompt = torch.randint(1, 299, (1, 9))
    texts, written = Texts(model, prompt, 10), []
    with torch.inference_mode():
        texts.read()
        for _ in range(6):
            texts.write()
            written.append(int(texts.token))
        expected = model.generate(prompt, max_new_tokens=6, do_sample=False, eos_token_id=-1)
    assert written == expected[0, 1:].tolist()


def test_held_out_figures_are_the_evaluation_s_and_the_routers(tmp_path: Path, data: tuple) -> None:
    config = trained_row(tmp_path, data, train={"eval_samples": 6})
    run, samples = load_run(tmp_path / "run"), run_samples(config)
    found = held_out_figures(run, samples)
    valid = evaluate_samples(run, samples.valid, samples.valid_count(config), samples.byte_lengths)
    assert (found["valid_loss"], found["valid_bits_per_byte"]) == (valid.loss, valid.bits_per_byte)
    experts = found["experts"]
    assert [len(layer) for layer in experts["load"]] == [0, 4]
    assert sum(experts["load"][1]) == pytest.approx(1)
    assert experts["max_mean_load"] == pytest.approx(4 * max(experts["load"][1]))
    # A capacity of the mean: what lies above it is dropped.
    assert 0 < experts["dropped_share"] < 1
    dense = trained_row(tmp_path / "dense", data, moe={"num_experts": 0, "capacity_factor": None, "layer_freq": 1})
    assert held_out_figures(load_run(tmp_path / "dense" / "run"), run_samples(dense))["experts"] is None
