"""Train a stream variant of your own: how layers read and write the wide residual stream.

    python examples/own_variant.py [--section.key VALUE ...]

A token's state is K blocks of d features, X in R^{K x d}. A layer F computes on one block:

    u = r X            read: a weighted sum of the blocks
    y = F(u)           compute: attention and feed-forward, on d features
    X' = M X + g (x) y     mix the blocks, and write the output to them

A variant says what r, M and g are, from a few learned numbers. Nothing else changes: it trains under every layout, with
experts, overlap, checkpoints and generation. Commands and studies take it as well:

    ALTUP_MOE_PLUGINS=examples/own_variant.py altup-moe train quickstart --altup.variant leaky
"""

import sys

import torch

from altup_moe import api


def leaky(block, c):
    """Weights of a layer whose turn it is to compute on `block`: all blocks fade a little, some leaks between them."""
    mix = torch.diag(torch.sigmoid(c["keep"])) + c["leak"]  # M, [K, K]
    # branch=True: the layer writes y - u, what it has added to its input.
    return api.Mixing(read=c["read"], mix=mix, write=torch.tanh(c["gate"]), branch=True)


api.register_variant(
    "leaky",
    {
        # Learned parameters of each layer. "K" stands for the number of blocks. one_hot: 1 at the layer's block.
        "read": api.Coefficient(("K",), "one_hot"),
        "keep": api.Coefficient(("K",), "ones"),
        "leak": api.Coefficient(("K", "K"), "zeros"),
        "gate": api.Coefficient(("K",), "ones"),
    },
    leaky,
    overwrite=True,
)


def main() -> None:
    """Compare it with the paper's variant on the same data and seed."""
    for variant in ("altup", "leaky"):
        config = api.load_config(
            {
                "model": {"num_layers": 4, "hidden_size": 64, "seq_length": 64, "vocab_size": 512},
                "altup": {"width": 4, "variant": variant},
                "optim": {"learning_rate": 3e-3, "warmup_steps": 5},
                "train": {"steps": 40, "micro_batch_size": 4, "global_batch_size": 4, "eval_samples": 16},
                "data": {"cache": "runs/own_variant/data"},
                "log": {"run_dir": f"runs/own_variant/{variant}"},
                "checkpoint": {"resume": False},
            },
            sys.argv[1:],
        )
        with api.session(config) as run:
            losses = [run.step().loss for _ in range(config.train.steps)]
            print(f"{variant:<6} loss {losses[0]:.3f} -> {losses[-1]:.3f}, held out {run.validate().loss:.3f}")
            run.save()
    # The last run was the one of ours.
    with api.read_checkpoint(config.log.run_dir) as checkpoint:
        name = next(name for name in checkpoint.names() if name.endswith("keep"))
        print(f"{name} after training:", ", ".join(f"{value:.4f}" for value in checkpoint.numpy(name)))


if __name__ == "__main__":
    main()
