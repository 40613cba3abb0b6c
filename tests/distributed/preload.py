"""What a process imports that forks others which train: the loop, as `altup-moe train` imports it, and torch's compiler.

Optimizers load the compiler; each fork would load it anew.
"""

from altup_moe.config.imports import without_collections
from altup_moe.parallel.compile_later import compile_later

with without_collections(), compile_later():
    import altup_moe.train.loop
    import torch._dynamo  # noqa: F401
