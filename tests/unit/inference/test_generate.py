"""Text that a finished run adds: greedy is the argmax done by hand, sampling repeats with its seed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from altup_moe.config import DataError, UserError
from altup_moe.config.run_directory import tokenizer_dir
from altup_moe.config.sampling import TEMPERATURE
from altup_moe.data.tokenizer import Tokenizer, load_tokenizer
from altup_moe.inference.generate import added_text, continuation, generate_command
from altup_moe.inference.load_run import FinishedRun, load_run
from tests.unit.inference.alike import sentencepiece_like
from tests.unit.train.runs import finished, tiny, write_run

PROMPT = "the cat"


@pytest.fixture(scope="module")
def run(bpe: Tokenizer) -> FinishedRun:
    return finished(tiny(), bpe, seed=3)


def by_hand(run: FinishedRun, prompt: str, count: int) -> str:
    """The most probable token again and again, without a cache, until the end token."""
    ids = run.tokenizer.encode(prompt) or [run.tokenizer.eod]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + count and (len(ids) == start or ids[-1] != run.tokenizer.eod):
            ids.append(int(run.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return run.tokenizer.decode(ids[start:])


@pytest.mark.parametrize("prompt", [PROMPT, "", "a", "日本"])
def test_greedy_is_the_most_probable_token(prompt: str, run: FinishedRun) -> None:
    expected = by_hand(run, prompt, 10)
    assert expected
    assert continuation(run, prompt, 10, 0.0, 1.0, seed=1) == expected
    # Neither the seed nor top_p means anything without sampling.
    assert continuation(run, prompt, 10, 0.0, 0.5, seed=2) == expected


def test_the_same_seed_gives_the_same_text_and_others_do_not(run: FinishedRun) -> None:
    texts = [continuation(run, PROMPT, 12, 1.0, 1.0, seed) for seed in range(6)]
    torch.rand(3)  # the global generator's state does not matter
    assert [continuation(run, PROMPT, 12, 1.0, 1.0, seed) for seed in range(6)] == texts
    assert len(set(texts)) > 3


def test_top_p_and_temperature_narrow_the_choice(run: FinishedRun) -> None:
    greedy = continuation(run, PROMPT, 12, 0.0, 1.0, 0)
    assert {continuation(run, PROMPT, 12, 1.0, 1e-6, seed) for seed in range(3)} == {greedy}
    assert {continuation(run, PROMPT, 12, 1e-4, 1.0, seed) for seed in range(3)} == {greedy}


def test_top_p_one_samples_from_every_token(run: FinishedRun) -> None:
    """transformers' own default would keep the 50 most probable tokens only; a hot enough model uses them all."""
    ids = torch.tensor([run.tokenizer.encode(PROMPT)])
    with torch.no_grad():
        likely = set(run.model(ids).logits[0, -1].topk(50).indices.tolist())
    texts = [continuation(run, PROMPT, 1, 1e4, 1.0, seed) for seed in range(40)]
    common = {run.tokenizer.decode([token]) for token in likely}
    assert [text for text in texts if text not in common]


def test_the_end_token_ends_the_text(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    first = continuation(run, PROMPT, 1, 0.0, 1.0, 0)
    ids = run.tokenizer.encode(PROMPT)
    with torch.no_grad():
        token = int(run.model(torch.tensor([ids])).logits[0, -1].argmax())
    monkeypatch.setattr(run.model.generation_config, "eos_token_id", token)
    assert continuation(run, PROMPT, 12, 0.0, 1.0, 0) == first


def test_text_stops_where_the_context_is_full(run: FinishedRun) -> None:
    room = run.config.model.seq_length - len(run.tokenizer.encode(PROMPT))
    full = continuation(run, PROMPT, 10_000, 0.0, 1.0, 0)
    assert full == continuation(run, PROMPT, room, 0.0, 1.0, 0) == by_hand(run, PROMPT, room)


def test_a_prompt_that_fills_the_context_is_refused(run: FinishedRun) -> None:
    with pytest.raises(UserError, match="was trained on 24"):
        continuation(run, "x y z " * 24, 5, 0.0, 1.0, 0)


def test_the_extreme_temperatures_that_are_taken_draw(run: FinishedRun) -> None:
    greedy = continuation(run, PROMPT, 12, 0.0, 1.0, 0)
    assert continuation(run, PROMPT, 12, TEMPERATURE.low, 1.0, 0) == greedy
    assert continuation(run, PROMPT, 12, TEMPERATURE.high, 1.0, 0) != greedy


def test_what_does_not_fit_is_said(bpe: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", tiny(), bpe, seed=3)
    ids = run.tokenizer.encode(PROMPT)
    room = 24 - len(ids)
    assert generate_command(tmp_path / "run", PROMPT, room + 1, 0.0, 1.0, 0) == 0
    said = capsys.readouterr().err
    assert said == f"altup-moe: max_new_tokens {room + 1}: {room} fit, the prompt has {len(ids)} of the model's 24\n"
    assert generate_command(tmp_path / "run", PROMPT, room, 0.0, 1.0, 0) == 0
    assert capsys.readouterr().err == ""


def test_a_model_made_for_more_than_its_samples_goes_on(run: FinishedRun) -> None:
    config = tiny(model={"max_positions": 40})
    longer, room = replace(run, config=config), 40 - len(run.tokenizer.encode(PROMPT))
    text = continuation(longer, PROMPT, 10_000, 0.0, 1.0, 0)
    assert text == by_hand(run, PROMPT, room) != by_hand(run, PROMPT, room - 16)


@pytest.mark.parametrize(("arch", "printed"), [("gpt", " sat on"), ("t5", "sat on")])
def test_the_first_space_behind_a_prompt_is_kept(arch: str, printed: str, tmp_path: Path) -> None:
    """Decoders of SentencePiece's kind leave out the first space of a text: here that is the prompt's."""
    sentencepiece_like(tmp_path / "llama", "PreTrainedTokenizerFast")
    tokenizer = load_tokenizer(tmp_path / "llama", add_special_tokens=True)
    run = FinishedRun(tiny(model={"arch": arch}), None, tokenizer, 0)  # type: ignore[arg-type]
    new = [*tokenizer.encode("sat on"), tokenizer.eod]
    assert added_text(run, run.prompt_format.ids("the cat", tokenizer), new) == printed


def test_the_rules_of_generation_config_count(bpe: Tokenizer, tmp_path: Path) -> None:
    """A penalty that the model came with is applied, a broken one is named."""
    write_run(tmp_path / "run", tiny(), bpe, seed=3)
    plain = continuation(load_run(tmp_path / "run"), PROMPT, 8, 0.0, 1.0, 0)
    rules = tokenizer_dir(tmp_path / "run") / "generation_config.json"
    penalty = {"suppress_tokens": [bpe.encode(plain)[0]]}
    rules.write_text(json.dumps({"eos_token_id": [0, 7], **penalty, "temperature": 0.1, "do_sample": True}))
    run = load_run(tmp_path / "run")
    assert run.model.generation_config.eos_token_id == [0, 7]
    assert run.model.generation_config.do_sample is not True
    assert continuation(run, PROMPT, 8, 0.0, 1.0, 0)[:1] != plain[:1]
    rules.write_text('{"min_length": "long"}')
    with pytest.raises(DataError, match=r"generation_config\.json: min_length is 'long', of another type"):
        continuation(load_run(tmp_path / "run"), PROMPT, 8, 0.0, 1.0, 0)


def test_command_prints_prompt_and_continuation(
    bpe: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", tiny(), bpe, seed=3)
    assert generate_command(tmp_path / "run", PROMPT, 8, 0.8, 0.9, 7) == 0
    assert capsys.readouterr().out == PROMPT + continuation(run, PROMPT, 8, 0.8, 0.9, 7) + "\n"
