"""Train a small model step by step in one process, as one would in a notebook, and let it write.

    python examples/train_notebook.py [--section.key VALUE ...]

The cells (# %%) run in order in a notebook, too. Words behind the file's name change the configuration, as they do for
`altup-moe train`: --train.steps 200 --altup.width 4 ...
"""

# %% What to train: a configuration is sections of keys; `altup-moe train --help` explains every key.
import sys

from altup_moe import api

config = api.load_config(
    {
        "model": {"num_layers": 4, "hidden_size": 128, "ffn_hidden_size": 256, "seq_length": 128, "vocab_size": 1024},
        "altup": {"width": 2},  # the residual stream is twice as wide as the layers; 1 is a plain Transformer
        "data": {"corpus": "python-docs"},  # half a megabyte of text that comes with Python
        "optim": {"learning_rate": 3e-3, "warmup_steps": 5},
        "train": {"steps": 60, "micro_batch_size": 4, "global_batch_size": 4, "eval_samples": 16},
        "log": {"run_dir": "runs/notebook"},
        "checkpoint": {"resume": True},  # run it again with more --train.steps, and it goes on
    },
    sys.argv[1:],
)

# %% Open the run: data, model and optimizer. In a script, `with api.session(config) as run:` closes it for you.
run = api.session(config).open()
print(f"{sum(p.numel() for p in run.model[0].parameters()):,} parameters; {run.steps_done} steps are done")

# %% One step of the optimizer gives a record: losses in nats per token, gradient norm, tokens a second, ...
while run.steps_done < config.train.steps:
    record = run.step()
    if record.step % 10 == 0:
        print(f"step {record.step}: loss {record.loss:.3f}, {record.tokens_per_second:,.0f} tokens/s")

# %% Loss on text that was held out, and a checkpoint. Closing takes the process groups down again.
held_out = run.validate()
print(f"held out: {held_out.loss:.3f} nats per token, {held_out.bits_per_byte:.3f} bits per byte")
saved = run.save()
print(f"saved {saved.directory.name}, {saved.bytes / 1e6:.1f} MB")
run.close()

# %% The run directory is an ordinary one: `altup-moe evaluate` and `altup-moe generate` read it as well.
prompt = "The for statement"
print(repr(prompt), "->", repr(api.generate(config.log.run_dir, prompt, max_new_tokens=20, temperature=0.7)))

# %% Everything that was recorded can be read without a process group.
files = api.read_run(config.log.run_dir)
losses = [line["loss"] for line in files.metrics()]
print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last; checkpoints: {[c.name for c in files.checkpoints()]}")
with api.read_checkpoint(files.latest) as checkpoint:
    table = checkpoint.numpy("model.embed_tokens.weight")
print(f"embedding table: {table.shape[0]} tokens x {table.shape[1]} features, standard deviation {table.std():.4f}")
