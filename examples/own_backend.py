"""Compute the experts of an MoE layer with code of your own: an expert backend.

    python examples/own_backend.py [--section.key VALUE ...]

A backend gets rows that are sorted by expert already (routing, capacity and the exchange between ranks are done), and
computes down(act(gate(x)) * up(x) * p) for each, p the route's probability. The same weights give the same model as
with every other backend, which is checked below. The contract: the text of `altup_moe/moe/backends.py`.
"""

import copy
import sys

import torch
from torch.nn.functional import linear, silu

from altup_moe import api


class LoopedExperts(api.StackedWeights):
    """This rank's experts, one after another. Weights: fc1 [E * 2f, d] (gate rows, then up rows), fc2 [E * d, f]."""

    def forward(self, rows, tokens_per_expert, probs):
        """Rows [R, d] sorted by expert, how many each has [E], probabilities [R] -> (outputs [R, d], no bias)."""
        outputs = []
        experts = zip(
            rows.split(tokens_per_expert.tolist()),
            probs.split(tokens_per_expert.tolist()),
            self.fc1.chunk(self.num_local_experts),
            self.fc2.chunk(self.num_local_experts),
            strict=True,
        )
        for x, p, both, down in experts:
            gate, up = linear(x, both).chunk(2, dim=-1)
            outputs.append(linear(silu(gate) * up * p.unsqueeze(-1), down))
        return torch.cat(outputs), None

    def backward_dw(self):
        """Megatron's hook for delayed weight gradients: nothing is put off."""


class LoopedLayer(api.OverlappedMoELayer):
    """Router, dispatch and overlap are those of the house; the experts are ours."""

    def __init__(self, config, submodules, *args, **kwargs):
        submodules = copy.copy(submodules)
        submodules.experts = LoopedExperts
        super().__init__(config, submodules, *args, **kwargs)


api.register_backend("looped", LoopedLayer, stacked=True, overwrite=True)


def main() -> None:
    """Take the same steps with it and with the backend `torch`."""
    losses = {}
    for backend in ("torch", "looped"):
        config = api.load_config(
            {
                "model": {"num_layers": 4, "hidden_size": 64, "seq_length": 64, "vocab_size": 512},
                "moe": {"num_experts": 4, "ffn_hidden_size": 96, "layer_freq": 2, "backend": backend},
                "optim": {"learning_rate": 3e-3, "warmup_steps": 5},
                "train": {"steps": 30, "micro_batch_size": 4, "global_batch_size": 4},
                "data": {"cache": "runs/own_backend/data"},
                "log": {"run_dir": f"runs/own_backend/{backend}"},
                "checkpoint": {"resume": False},
            },
            sys.argv[1:],
        )
        with api.session(config) as run:
            records = [run.step() for _ in range(config.train.steps)]
        losses[backend] = [record.loss for record in records]
        seconds = sorted(record.step_seconds for record in records)[len(records) // 2]
        print(f"{backend:<7} loss {records[0].loss:.4f} -> {records[-1].loss:.4f}, {1e3 * seconds:.0f} ms a step")
    farthest = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    print(f"largest difference of a loss: {farthest:.1e}")


if __name__ == "__main__":
    main()
