"""Where the implementations of the one pass are tested."""

from __future__ import annotations

import os

import torch

CPU = torch.device("cpu")
# tests/conftest.py asks for the interpreter; TRITON_INTERPRET=0 runs these tests on a GPU.
TRITON_DEVICE = torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")
