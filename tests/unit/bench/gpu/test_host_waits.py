"""The counter of waits: each operation that waits for a GPU is seen on a CPU, and others are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from megatron.core.pipeline_parallel.schedules import custom_backward
from torch import Tensor, nn

from altup_moe.bench.gpu import waits
from altup_moe.bench.gpu.host_waits import HostWaits, Place, counted, pretended
from altup_moe.bench.gpu.sizes import REHEARSAL
from altup_moe.device.on_device import on_device
from altup_moe.parallel import cpu

Work = Callable[[Tensor, Tensor, torch.device], Any]
"""Of (values on the device, on the host, the device)."""

WAITS: dict[str, tuple[Work, str]] = {
    "item": (lambda x, h, d: x[0].item(), "_local_scalar_dense"),
    "bool": (lambda x, h, d: bool(x.sum() > 0), "_local_scalar_dense"),
    "float": (lambda x, h, d: float(x.sum()), "_local_scalar_dense"),
    "tolist": (lambda x, h, d: x.tolist(), "tolist"),
    "cpu": (lambda x, h, d: x.cpu(), "copy to the host"),
    "to host": (lambda x, h, d: x.to("cpu"), "copy to the host"),
    "to host, another dtype": (lambda x, h, d: x.to("cpu", torch.float64), "copy to the host"),
    "to device": (lambda x, h, d: h.to(d), "copy to the device"),
    "to that of a tensor": (lambda x, h, d: h.to(x), "copy to the device"),
    "to the device of a tensor": (lambda x, h, d: h.to(x.device), "copy to the device"),
    "copy_": (lambda x, h, d: x.copy_(h), "copy to the device"),
    "copy_ back": (lambda x, h, d: h.copy_(x), "copy to the host"),
    "tensor": (lambda x, h, d: torch.tensor([1.0], device=d), "tensor on the device"),
    "new_tensor": (lambda x, h, d: x.new_tensor(1.0), "new_tensor on the device"),
    "as_tensor": (lambda x, h, d: torch.as_tensor(h, device=d), "as_tensor on the device"),
    "tensor of values": (lambda x, h, d: torch.tensor([x[0]]), "tensor of a value on the device"),
    "nonzero": (lambda x, h, d: x.nonzero(), "nonzero"),
    "where": (lambda x, h, d: torch.where(x > 0), "nonzero"),
    "masked_select": (lambda x, h, d: x.masked_select(x > 0), "masked_select"),
    "index by a mask": (lambda x, h, d: x[x > 0], "index by a mask"),
    "write by a mask": (lambda x, h, d: x.__setitem__(x > 0, x[:1]), "index_put_ by a mask"),
    "index on the host": (lambda x, h, d: x[h.long()], "index by an index on the host"),
    "unique": (lambda x, h, d: x.unique(), "_unique2"),
    "repeat": (lambda x, h, d: x.repeat_interleave(x.long()), "repeat_interleave"),
    "equal": (lambda x, h, d: torch.equal(x, x), "equal"),
    "event": (lambda x, h, d: torch.cuda.Event().synchronize(), "Event.synchronize"),
    "device": (lambda x, h, d: torch.cuda.synchronize(), "synchronize"),
    "backward": (lambda x, h, d: _Reads.apply(x.requires_grad_()).sum().backward(), "_local_scalar_dense"),
}

NO_WAITS: dict[str, Work] = {
    "arithmetic": lambda x, h, d: (x * 2 + x.sum()).softmax(0),
    "host alone": lambda x, h, d: (h.tolist(), h.sum().item(), h.nonzero(), h.cpu(), h.to("cpu"), h[h > 0]),
    "there already": lambda x, h, d: (x.to(d), x.to(x.device), x.double()),
    "as_tensor of it": lambda x, h, d: torch.as_tensor(x, device=d),
    "made there": lambda x, h, d: (torch.zeros(3, device=d) + x, torch.full((), 2.0, device=x.device) + x),
    "a copy that is not waited for": lambda x, h, d: x + h.to(d, non_blocking=True),
    "on_device": lambda x, h, d: x + on_device([1, 2, 3], d, torch.float32),
    "filled by a mask": lambda x, h, d: x.__setitem__(x > 0, 0.0),
    "index on the device": lambda x, h, d: x[torch.arange(2, device=d)],
    "repeat to a size": lambda x, h, d: x.repeat_interleave(torch.ones_like(x).long(), output_size=3),
    "the gradient of an unused result": lambda x, h, d: (
        _Doubles.apply(x.bfloat16().requires_grad_())[1].sum().backward()
    ),
    "the same, as pipelines do it": lambda x, h, d: custom_backward(
        _Doubles.apply(x.bfloat16().requires_grad_())[1].sum(), None
    ),
    "gradients": lambda x, h, d: nn.functional.softmax(x.requires_grad_(), 0).square().sum().backward(),
}


class _Reads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * grads[0][0].item()


class _Doubles(torch.autograd.Function):
    """Adds gradients up in the first one, which is in bf16, by way of fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.view_as(x), x.float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grads[0][:2] = grads[0][:2].float().add_(grads[1][:2])
        return grads[0]


def count(work: Work) -> list[str]:
    """What was waited in."""
    cpu.enable()
    with pretended() as device:
        x, host = torch.zeros(3, device=device) + 1, torch.ones(3)
        with counted() as found:
            work(x, host, device)
    return [place.through for place in found.count.elements()]


@pytest.mark.parametrize("name", WAITS)
def test_what_waits_is_counted_once(name: str) -> None:
    work, through = WAITS[name]
    assert [found.partition(" in ")[0] for found in count(work)] == [through]


@pytest.mark.parametrize("name", NO_WAITS)
def test_what_does_not_wait_is_not_counted(name: str) -> None:
    assert count(NO_WAITS[name]) == []


def test_a_tensor_says_where_it_is_and_keeps_its_values() -> None:
    cpu.enable()
    with pretended() as device:
        host = torch.tensor([1.0, 2.0])
        there = host.to(device)
        assert (there.device, host.device) == (device, torch.device("cpu"))
        assert there.data_ptr() != host.data_ptr()
        assert (there + 1).device == (there.new_zeros(1)).device == device
        assert there.new_zeros(1, device="cpu").device == there.cpu().device == torch.device("cpu")
        assert there.cpu().tolist() == [1.0, 2.0]
        with pytest.raises(TypeError, match="on the device"):
            there.numpy()
    assert there.device == torch.device("cpu")


def test_nothing_stays_replaced() -> None:
    cpu.enable()
    before = torch.Tensor.cuda, torch.cuda.synchronize, dict(vars(torch.cuda.Event))
    with pretended(), counted():
        assert torch.Tensor.cuda is not before[0]
    assert (torch.Tensor.cuda, torch.cuda.synchronize, dict(vars(torch.cuda.Event))) == before
    assert torch.device("cpu") == cpu._CPU


def test_a_place_that_is_not_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = HostWaits()
    strange, known = (
        Place("altup_moe/model/gpt.py:forward", "nonzero"),
        Place("altup_moe/train/step.py:_read", "tolist"),
    )
    counts.count.update({strange: 2, known: 1})
    counts.lines = {strange: 7, known: 9}
    monkeypatch.setattr(waits, "waits_of_a_step", lambda run, how: counts)
    found = waits.waits(REHEARSAL)
    judged = {figure.what: figure.met for figure in found.figures}
    assert judged["K = 1: waits of a step"] is judged["K = 1: of them where none is known"] is False
    assert judged["K = 2, experts in a loop: waits of a step"] is True
    assert "K = 1: 2 x altup_moe/model/gpt.py:7 forward (nonzero): not known" in found.notes
    assert found.notes[0] == waits.NOT_REHEARSED
