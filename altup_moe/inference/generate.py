"""Continue a text with a finished run, through the reference model's KV cache."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from altup_moe.config import ModelConfig, UserError
from altup_moe.inference.load_run import FinishedRun, load_run

GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1}
"""Arguments of `generate` that always take the likeliest token."""


def continuation(
    run: FinishedRun, prompt: str, max_new_tokens: int, temperature: float, top_p: float, seed: int
) -> str:
    """Text that the model adds to `prompt`; the same seed gives the same text. Temperature 0 is greedy.

    An encoder-decoder reads the prompt and answers with a text of its own.

    Args:
        max_new_tokens: at most; fewer where the model has no more room (`room_behind`).
    Raises:
        UserError: the prompt does not fit into the model's length.
    """
    ids = run.prompt_format.ids(prompt, run.tokenizer)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    torch.manual_seed(seed)
    how = sampling if temperature > 0 else GREEDY
    (new,) = generated_ids(run, [ids], min(max_new_tokens, room_behind(run, ids)), how)
    return added_text(run, ids, new)


def room_behind(run: FinishedRun, ids: Sequence[int]) -> int:
    """New tokens that the model has room for: behind a prompt, or behind the start token of a decoder of its own.

    Raises:
        UserError: the prompt leaves none.
    """
    return room_in(run.config.model, ids)


def room_in(model: ModelConfig, ids: Sequence[int]) -> int:
    """`room_behind` in a model of this configuration."""
    room = model.decoder_length if model.encoder_decoder else model.positions - len(ids)
    if room < 1 or len(ids) > model.positions:
        raise UserError(f"prompt: has {len(ids)} tokens, and the model was trained on {model.positions}; shorten it")
    return room


@torch.no_grad()
def generated_ids(
    run: FinishedRun, inputs: Sequence[Sequence[int]], max_new_tokens: int, how: dict[str, Any]
) -> list[list[int]]:
    """New ids of each input, its end token included if it has one. A decoder alone reads them padded on the left.

    Args:
        how: arguments of transformers' `generate` that say how a token is chosen, e.g. `GREEDY`.
    """
    reads = run.config.model.encoder_decoder
    width, pad = max(len(ids) for ids in inputs), run.tokenizer.pad_id
    tokens = torch.full((len(inputs), width), pad, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, ids in enumerate(inputs):
        place = slice(0, len(ids)) if reads else slice(width - len(ids), width)
        tokens[row, place], mask[row, place] = torch.tensor(ids, dtype=torch.long), 1
    device = run.model.device
    out = run.model.generate(tokens.to(device), attention_mask=mask.to(device), max_new_tokens=max_new_tokens, **how)
    return [through_end(row.tolist(), run.end_ids) for row in out[:, 1 if reads else width :].cpu()]


def through_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    """The ids up to the first end, which is kept: padding follows it."""
    first = next((n for n, token in enumerate(ids) if token in ends), len(ids))
    return ids[: first + 1]


def added_text(run: FinishedRun, ids: Sequence[int], new: Sequence[int]) -> str:
    """The text of new ids behind a prompt's; of an encoder-decoder, which begins a text of its own, their text alone.

    Tokenizers that spell a space with the word behind it leave the first space of a text out: what stands behind a
    prompt has to be decoded together with it.
    """
    decode = run.tokenizer.decode_answer
    if run.config.model.encoder_decoder:
        return decode(new)
    before, whole = decode(ids), decode([*ids, *new])
    return whole.removeprefix(before) if whole.startswith(before) else decode(new)


def generate_command(
    run_dir: Path, prompt: str, max_new_tokens: int, temperature: float, top_p: float, seed: int
) -> int:
    """`altup-moe generate`: print the prompt and its continuation, or below it an encoder-decoder's answer.

    Where fewer new tokens fit than were asked for, a line on standard error says so.
    """
    run = load_run(run_dir)
    ids = run.prompt_format.ids(prompt, run.tokenizer)
    room = room_behind(run, ids)
    if room < max_new_tokens:
        model = run.config.model
        where = (
            f"the decoder has model.decoder_seq_length {room}"
            if model.encoder_decoder
            else f"the prompt has {len(ids)} of the model's {model.positions}"
        )
        print(f"altup-moe: max_new_tokens {max_new_tokens}: {room} fit, {where}", file=sys.stderr)
    text = continuation(run, prompt, max_new_tokens, temperature, top_p, seed)
    print(f"{prompt}\n{text}" if run.config.model.encoder_decoder else prompt + text)
    return 0
