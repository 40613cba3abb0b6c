"""Continue a text with a finished run, through the reference model's KV cache."""

from __future__ import annotations

from pathlib import Path

import torch

from altup_moe.config import UserError
from altup_moe.inference.load_run import FinishedRun, load_run


def continuation(
    run: FinishedRun, prompt: str, max_new_tokens: int, temperature: float, top_p: float, seed: int
) -> str:
    """Text that the model adds to `prompt`; the same seed gives the same text. Temperature 0 is greedy.

    An encoder-decoder reads the prompt and answers with a text of its own.

    Raises:
        UserError: prompt and new tokens do not fit into model.seq_length.
    """
    ids = run.tokenizer.encode(prompt) or [run.tokenizer.eod]
    model, length = run.config.model, run.config.model.seq_length
    answers = model.encoder_decoder
    # What is generated stands behind the prompt, or behind the decoder's start token.
    room, start = (model.decoder_length, 1) if answers else (length - len(ids), len(ids))
    if room < 1 or len(ids) > length:
        raise UserError(f"prompt: has {len(ids)} tokens, and the model was trained on {length}; shorten it")
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
    torch.manual_seed(seed)
    tokens = torch.tensor([ids], device=run.model.device)
    out = run.model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=min(max_new_tokens, room),
        **(sampling if temperature > 0 else {"do_sample": False}),
    )
    return run.tokenizer.decode(out[0, start:].tolist())


def generate_command(
    run_dir: Path, prompt: str, max_new_tokens: int, temperature: float, top_p: float, seed: int
) -> int:
    """`altup-moe generate`: print the prompt and its continuation, or below it an encoder-decoder's answer."""
    run = load_run(run_dir)
    text = continuation(run, prompt, max_new_tokens, temperature, top_p, seed)
    print(f"{prompt}\n{text}" if run.config.model.encoder_decoder else prompt + text)
    return 0
