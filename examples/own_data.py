"""Train on texts of your own with an objective of your own.

    python examples/own_data.py [--section.key VALUE ...]

A corpus is a function that gives texts: they are tokenised once, and split into training and validation by documents.
An objective says how many tokens a sample has, and what is made of them. (For files on a disk there is
`altup-moe prepare-data`, and no code is needed.)
"""

import sys

import numpy as np

from altup_moe import api


def sums():
    """Two thousand lines of arithmetic, 40 to a document: the same ones at every call."""
    random = np.random.RandomState(0)
    for _ in range(50):
        pairs = random.randint(0, 50, size=(40, 2))
        yield "\n".join(f"{a} + {b} = {a + b}" for a, b in pairs)


def second_half(model, data, tokenizer):
    """Predict the next token, but count only the second half of a window: what comes with much context.

    Args:
        model, data: sections of the configuration. tokenizer: what the corpus was tokenised with.
    """
    length, pad = model.seq_length, tokenizer.pad_id

    def make(tokens, random):
        """Tokens int64 [length + 1] (fewer at the corpus' end), and this sample's own random generator -> arrays."""
        labels = len(tokens) - 1
        counts = (np.arange(labels) >= labels // 2).astype(np.float32)
        return api.next_tokens(tokens, counts, length, pad)  # tokens, labels and loss mask, padded to `length`

    # overlap=1: one token more is read, the label of the window's last one.
    return api.SampleRecipe(window=length, make=make, overlap=1)


api.register_corpus("sums", sums, description="sums of two numbers below 50", overwrite=True)
api.register_objective("second-half", second_half, overwrite=True)


def main() -> None:
    """Train, and look at what the model makes of a sum."""
    config = api.load_config(
        {
            "model": {"num_layers": 3, "hidden_size": 96, "seq_length": 64, "vocab_size": 300},
            "altup": {"width": 2},
            "data": {"corpus": "sums", "objective": "second-half", "valid_fraction": 0.1},
            "optim": {"learning_rate": 4e-3, "warmup_steps": 10},
            "train": {"steps": 120, "micro_batch_size": 8, "global_batch_size": 8, "eval_samples": 32},
            "log": {"run_dir": "runs/own_data"},
            "checkpoint": {"resume": False},
        },
        sys.argv[1:],
    )
    with api.session(config) as run:
        for _ in range(config.train.steps):
            record = run.step(validate=run.steps_done + 1 == config.train.steps)
            if record.step % 20 == 0 or record.step == 1:
                print(f"step {record.step}: loss {record.loss:.3f} nats per token")
        print(f"held out: {record.valid_loss:.3f} nats per token")
        run.save()
    prompt = "12 + 30 = 42\n7 + 8 ="
    print(repr(prompt), "->", repr(api.generate(config.log.run_dir, prompt, max_new_tokens=6, temperature=0)))


if __name__ == "__main__":
    main()
