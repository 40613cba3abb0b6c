"""The size of models that a test starts in processes of their own: a step takes milliseconds. It imports nothing."""

TINY_SIZES = {
    "num_layers": 2,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_attention_heads": 2,
    "num_query_groups": 2,
    "seq_length": 32,
    "vocab_size": 320,
}
"""Keys of `model`."""
