"""Settings of all tests: no network look-ups, one thread a process (ranks share two cores)."""

import os
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Triton reads it when first imported, and torch may import triton. On a GPU, 0 tests the compiled kernels.
os.environ.setdefault("TRITON_INTERPRET", "1")
warnings.filterwarnings("ignore", category=UserWarning, module=r"megatron\.")
