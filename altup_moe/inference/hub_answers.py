"""The second proof of a conversion: both sides answer alike, each through its own files as a user would."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from altup_moe.inference.generate import GREEDY, generated_ids, room_behind, through_end
from altup_moe.inference.load_run import FinishedRun

PROMPTS = ("The cat sat on the mat, and", "a", "Question: what is 1 + 2?\nAnswer:")
NEW_TOKENS = 8
NEAR = 1e-4
"""Two logits that differ by less, as a share of the largest, may be ordered otherwise by other sums (fp32)."""


class CheckFailed(Exception):
    """The converted model does not compute what its source does."""


@dataclass(frozen=True)
class Answer:
    """A prompt's ids in a model, the new ids (the end included), and the text of both (a decoder's) or of the new."""

    inputs: list[int]
    new: list[int]
    text: str


def compare_answers(
    ours: Callable[[], FinishedRun], files: Path, theirs: Callable[[], Any], prompts: tuple[str, ...] = PROMPTS
) -> str:
    """Generate greedily with both, one model at a time in memory. Returns a line.

    Args:
        files: Hugging Face directory whose tokenizer builds their inputs. theirs: loads its model.
    Raises:
        CheckFailed: the ends of texts, an input, a choice of a token (but between two as likely), or a text differs.
    """
    run = ours()
    prompts = tuple(p for p in (*prompts, *_spelled(run)) if _fits(run, p))
    limits = [min(NEW_TOKENS, room_behind(run, run.prompt_format.ids(p, run.tokenizer))) for p in prompts]
    our_ends = run.end_ids
    mine = [our_answer(run, prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)]
    del run
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(files), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        return f"answers not compared: transformers does not load the tokenizer ({' '.join(str(error).split())[:120]})"
    model = theirs().float().eval()
    if (ends := _ends(model)) and set(ends) != set(our_ends):
        raise CheckFailed(f"a text ends at {ends} under transformers, at {our_ends} here")
    # With and without the KV cache: of a model of ours, both sides would be wrong alike with a cache that is lost.
    other = [
        (prompt, a, their_answer(model, tokenizer, prompt, limit, cached))
        for cached in sorted({False, cache_is_right(model)})
        for prompt, a, limit in zip(prompts, mine, limits, strict=True)
    ]
    del model
    for prompt, a, b in other:
        if a.inputs != b.inputs:
            raise CheckFailed(f"the prompt {prompt!r} is {b.inputs} under transformers, {a.inputs} here")
        if a.new != b.new:
            _refuse_unless_near(ours(), prompt, a, b)
        elif a.text != b.text:
            raise CheckFailed(f"{prompt!r} is answered {b.text!r} under transformers, {a.text!r} here")
    return f"greedy answers to {len(prompts)} prompts are the same under transformers"


def our_answer(run: FinishedRun, prompt: str, new_tokens: int) -> Answer:
    """What a run answers."""
    ids = run.prompt_format.ids(prompt, run.tokenizer)
    (new,) = generated_ids(run, [ids], new_tokens, GREEDY)
    whole = new if run.config.model.encoder_decoder else [*ids, *new]
    return Answer(ids, new, run.tokenizer.decode_answer(whole))


@torch.no_grad()
def their_answer(model: Any, tokenizer: Any, prompt: str, new_tokens: int, cached: bool) -> Answer:
    """What a model of transformers answers, everything else as its files say."""
    encoded = tokenizer(prompt, return_tensors="pt")
    ids = encoded["input_ids"]
    out = model.generate(
        ids,
        attention_mask=encoded["attention_mask"],
        max_new_tokens=new_tokens,
        use_cache=cached,
        **GREEDY,
    )[0].tolist()
    reads = bool(model.config.is_encoder_decoder)
    new = through_end(out[1 if reads else ids.shape[1] :], _ends(model))
    return Answer(ids[0].tolist(), new, tokenizer.decode(new if reads else out, skip_special_tokens=True))


def _ends(model: Any) -> list[int]:
    """Ids at which a model of transformers ends a text."""
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def cache_is_right(model: Any) -> bool:
    """False for a T5 whose stacks differ: transformers 5.23 sizes its cache by the encoder's layers."""
    return getattr(model.config, "num_decoder_layers", None) in (None, model.config.num_hidden_layers)


def _spelled(run: FinishedRun) -> list[str]:
    """A prompt that spells a special token, if there is one beside the end."""
    added = run.tokenizer.backend.get_added_tokens_decoder()
    special = [str(token.content) for i, token in sorted(added.items()) if token.special and i != run.tokenizer.eod]
    return [f"a {special[-1]} b"] if special else []


def _fits(run: FinishedRun, prompt: str) -> bool:
    return len(run.prompt_format.ids(prompt, run.tokenizer)) < run.config.model.positions


@torch.no_grad()
def _refuse_unless_near(run: FinishedRun, prompt: str, a: Answer, b: Answer) -> None:
    """Raise CheckFailed unless the first different tokens are as likely as each other."""
    at = next((n for n, pair in enumerate(zip(a.new, b.new, strict=False)) if pair[0] != pair[1]), None)
    if at is not None:
        same, inputs = a.new[:at], torch.tensor([a.inputs])
        if run.config.model.encoder_decoder:
            logits = run.model(inputs, decoder_input_ids=torch.tensor([[run.tokenizer.start_id, *same]])).logits
        else:
            logits = run.model(torch.tensor([[*a.inputs, *same]])).logits
        last = logits[0, -1].float()
        if abs(float(last[a.new[at]] - last[b.new[at]])) <= NEAR * max(1.0, float(last.abs().max())):
            return
    raise CheckFailed(f"{prompt!r} is answered {b.text!r} under transformers, {a.text!r} here")
