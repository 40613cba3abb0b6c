"""Your own training loop, with batches of your own, on one process or on several.

    altup-moe launch torchrun --ranks-per-node 2 -- python examples/own_loop.py
    python examples/own_loop.py

The task is made up: a sequence repeats after 8 tokens, and the model has to find that out. Every rank runs this file;
with two ranks each has half of the experts and half of every step's samples.
"""

import sys

import torch

from altup_moe import api

PERIOD = 8


def repeating(samples: int, length: int, vocabulary: int, seed: int) -> torch.Tensor:
    """Random sequences with a period, int64 [samples, length]."""
    generator = torch.Generator().manual_seed(seed)
    piece = torch.randint(vocabulary, (samples, PERIOD), generator=generator)
    return piece.repeat(1, -(-length // PERIOD))[:, :length]


def main() -> None:
    """Train on batches of our own, and save."""
    ranks = api.world_size()
    config = api.load_config(
        {
            "model": {"num_layers": 2, "hidden_size": 64, "seq_length": 32, "vocab_size": 64},
            "moe": {"num_experts": 4, "ffn_hidden_size": 64},
            "parallel": {"expert": ranks},
            "optim": {"learning_rate": 3e-3, "warmup_steps": 5, "schedule": "constant"},
            "train": {"steps": 80, "micro_batch_size": 4, "global_batch_size": 16},
            "log": {"run_dir": "runs/own_loop"},
            "checkpoint": {"resume": False},
        },
        sys.argv[1:],
    )
    m, t = config.model, config.train

    # data=False: no corpus and no tokenizer, every batch is ours.
    with api.session(config, data=False) as run:
        where = run.topology  # where this rank stands: rank, data_rank, data_size, device, ...
        while run.steps_done < t.steps:
            # Micro-batches of a step are numbered over all ranks; this rank takes every data_size-th.
            numbers = [where.data_rank + where.data_size * n for n in range(run.micro_batches)]
            seeds = [1000 * run.steps_done + number for number in numbers]
            tokens = [repeating(t.micro_batch_size, m.seq_length + 1, m.vocab_size, seed) for seed in seeds]
            record = run.step([api.next_token_batch(one) for one in tokens])  # the same record on every rank
            if run.is_first and (record.step % 10 == 0 or record.step == 1):
                print(f"step {record.step}: loss {record.lm_loss:.3f}, gradient norm {record.grad_norm:.2f}")
        saved = run.save()
        if run.is_first:
            print(f"{ranks} rank(s); saved {saved.directory}, {saved.bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
