"""Standing in for CUDA on a CPU, and random states that come back. Under CUDA nothing may be changed."""

from __future__ import annotations

import subprocess
import sys

import torch

from altup_moe.parallel.cpu import _cuda_type_names, enable
from altup_moe.parallel.rng import rng_state, set_rng_state

QUESTIONS = """
import torch
from altup_moe.parallel.cpu import enable
cuda = torch.cuda.is_available()
assert enable() is not cuda
if not cuda:
    assert enable(), "a second time changes nothing and still answers"
    assert torch.cuda.current_device() == torch.device("cpu")
    for factory in (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.arange):
        for device in ("cuda", "cuda:0", torch.device("cuda", 0)):
            assert factory(3, device=device).device.type == "cpu"
    assert torch.full((2,), 1.0, device="cuda").tolist() == torch.tensor([1.0, 1.0], device="cuda").tolist()
    assert torch.empty(3, device="meta").device.type == "meta"
    x = torch.ones(2)
    assert x.cuda() is x
    event = torch.cuda.Stream().record_event()
    assert event.query()
    event.wait()
    with torch.cuda.stream(torch.cuda.current_stream()):
        torch.cuda.synchronize()
    torch.cuda.manual_seed(7)
    drawn = torch.rand(3)
    torch.cuda.manual_seed(7)
    state = torch.cuda.get_rng_state()
    assert torch.equal(torch.rand(3), drawn)
    torch.cuda.set_rng_state(state)
    assert torch.equal(torch.rand(3), drawn)
print("answered")
"""


def test_cuda_questions_are_answered_for_the_cpu() -> None:
    """In a process of its own: torch stays changed for the rest of it."""
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", QUESTIONS], capture_output=True, text=True, check=False)
    assert out.stdout.strip() == "answered", out.stderr


def test_type_names_are_cuda_names_only_inside() -> None:
    x = torch.ones(2, dtype=torch.bfloat16)
    plain = torch.Tensor.type
    with _cuda_type_names():
        assert x.type() == "torch.cuda.BFloat16Tensor"
        assert x.type(torch.float32).dtype == torch.float32
    assert x.type() == "torch.BFloat16Tensor"
    assert torch.Tensor.type is plain


def test_random_streams_continue_where_they_were() -> None:
    """The CPU's and Megatron's tracker's: dropout after a resume draws what it would have drawn."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    enable()
    tracker = get_cuda_rng_tracker()
    before = tracker.get_states()
    try:
        tracker.reset()
        torch.manual_seed(1)
        tracker.add("one", 5)
        tracker.add("two", 6)
        states = {name: state.clone() for name, state in rng_state().items()}
        assert set(states) >= {"cpu", "tracker.one", "tracker.two"}
        assert all(state.dtype == torch.uint8 for state in states.values())  # safetensors can hold them

        def draw() -> list[torch.Tensor]:
            drawn = [torch.rand(4)]
            for name in ("one", "two", "one"):
                with tracker.fork(name):
                    drawn.append(torch.rand(4))
            return drawn

        first, second = draw(), draw()
        assert not torch.equal(first[0], second[0])
        assert not torch.equal(first[1], first[2])
        assert not torch.equal(first[1], first[3])
        set_rng_state(states)
        for again, once in zip(draw(), first, strict=True):
            assert torch.equal(again, once)
    finally:
        tracker.set_states(before)
