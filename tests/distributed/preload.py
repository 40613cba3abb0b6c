"""What a process imports that forks others which train: what `altup-moe train` imports, as that does.

And torch's compiler, which optimizers load: each fork would do so anew. All of it is there for good, so that no fork
looks for garbage in it (and copies its pages).
"""

import gc
from importlib import import_module

from altup_moe.config.imports import without_collections
from altup_moe.parallel.compile_later import compile_later

with without_collections(), compile_later():
    for name in ("altup_moe.train.loop", "torch._dynamo"):
        import_module(name)
gc.freeze()
