"""Any slice over any partition, bit for bit; hashes; and what a checkpoint must consist of."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from altup_moe.checkpoint.shards import item_type
from altup_moe.checkpoint.slices import full_slice, num_elements, slice_shape
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.write import NamedSlice, WritePlan, write_checkpoint
from altup_moe.config import DataError
from tests.processes import open_below
from tests.unit.checkpoint.models import CONFIG, forms_of, head_of, reader_of, save, values_of, with_model
from tests.unit.checkpoint.test_slices import index, partitions, slices

SPECS = forms_of()
VALUES = values_of(SPECS)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint; this name hides the run of conftest.py."""
    return save(tmp_path_factory.mktemp("good"))


def test_everything_whole(good: Path) -> None:
    with Checkpoint(good) as checkpoint:
        checkpoint.verify()
        assert len(checkpoint.manifest.files) >= 4
        assert checkpoint.config == CONFIG
        assert checkpoint.manifest.tensors.keys() == VALUES.keys()
        for name, value in VALUES.items():
            read = checkpoint.read(name)
            assert read.dtype == value.dtype
            assert np.array_equal(read, value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.data())
def test_any_slice_over_any_partition(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(SPECS)), min_size=1, max_size=6, unique=True))
    plan: WritePlan = {f"f{n}.safetensors": [] for n in range(3)}
    for name, spec in SPECS.items():
        pieces = data.draw(partitions(full_slice(spec.shape))) if name in names else [full_slice(spec.shape)]
        for piece in pieces:
            plan[f"f{data.draw(st.integers(0, 2)) if name in names else 0}.safetensors"].append(NamedSlice(name, piece))
    root = tmp_path_factory.mktemp("any")
    with Checkpoint(write_checkpoint(root, head_of(), SPECS, plan, reader_of(VALUES))) as checkpoint:
        for name in names:
            tensor_slice = data.draw(slices(SPECS[name].shape))
            assert np.array_equal(checkpoint.read(name, tensor_slice), VALUES[name][index(tensor_slice)])
            # Into the middle of something larger: nothing beside the slice is touched.
            large = np.full([n + 2 for n in slice_shape(tensor_slice)], 7, item_type(SPECS[name].dtype))
            middle = tuple(slice(1, -1) for _ in tensor_slice)
            checkpoint.read_into(name, tensor_slice, large[middle])
            assert np.array_equal(large[middle], VALUES[name][index(tensor_slice)])
            assert (large == 7).sum() >= large.size - num_elements(tensor_slice)


def test_slices_and_arrays_that_do_not_fit(good: Path) -> None:
    name = "weights/model.norm.weight"
    with Checkpoint(good) as checkpoint:
        for tensor_slice in (((0, 9),), ((3, 2),), (), ((0, 8), (0, 1))):
            with pytest.raises(ValueError, match=name):
                checkpoint.read_into(name, tensor_slice, np.empty(8, np.uint16))
        for out in (np.empty(7, np.uint16), np.empty((8, 1), np.uint16), np.empty(8, np.uint32)):
            with pytest.raises(ValueError, match=name):
                checkpoint.read_into(name, ((0, 8),), out)
        with pytest.raises(KeyError):
            checkpoint.read("weights/nothing")


def test_verify_some_files_only(tmp_path: Path) -> None:
    directory = save(tmp_path)
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    spoilt = directory / names[1]
    raw = bytearray(spoilt.read_bytes())
    raw[-1] ^= 1
    spoilt.write_bytes(raw)
    with Checkpoint(directory) as checkpoint:
        checkpoint.verify([names[0], names[2]])
        checkpoint.verify([])
        for threads in (1, 2, None):
            with pytest.raises(DataError, match=r"SHA-256 differs") as caught:
                checkpoint.verify(threads=threads)
            assert caught.value.file == str(spoilt)


def test_what_was_verified_is_what_is_read(tmp_path: Path) -> None:
    directory = save(tmp_path)
    with Checkpoint(directory) as checkpoint:
        other = save(tmp_path / "other", seed=1)
        for path in directory.glob("*.safetensors"):
            os.replace(other / path.name, path)
        checkpoint.verify()
        assert all(np.array_equal(checkpoint.read(name), VALUES[name]) for name in VALUES)


def test_nothing_stays_open(tmp_path: Path) -> None:
    directory = save(tmp_path)
    with Checkpoint(directory):
        assert open_below(directory) != []
    (directory / "zzz").write_text("")
    with pytest.raises(DataError):
        Checkpoint(directory)
    (directory / "zzz").unlink()
    last = max(directory.glob("*.safetensors"))
    last.write_bytes(b"x" * last.stat().st_size)
    with pytest.raises(DataError, match=last.name):
        Checkpoint(directory)
    assert open_below(directory) == []


def test_weights_alone_and_fp32(tmp_path: Path) -> None:
    with Checkpoint(save(tmp_path / "a", optimizer=False)) as checkpoint:
        assert not checkpoint.manifest.has_optimizer
    with Checkpoint(save(tmp_path / "b", weights="F32")) as checkpoint:
        assert (checkpoint.manifest.has_optimizer, checkpoint.manifest.of_kind("main")) == (True, {})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_layers": 10**9}, "num_layers 1000000000; its tensors are too few"),
        ({"num_query_groups": 10**12, "num_attention_heads": 10**12}, "num_query_groups 1000000000000"),
        ({"num_attention_heads": 0}, "of no model"),
        ({"num_layers": 3}, "lacks weights/model.layers.2"),
        ({"num_layers": 1}, "has weights/model.layers.1"),
        ({"vocab_size": 15}, r"embed_tokens.weight is \[16, 8\]; the model of its configuration has \[15, 8\]"),
        ({"hidden_size": -8}, "the model of its configuration has"),
    ],
)
@pytest.mark.timeout(20)
def test_a_configuration_of_another_model(tmp_path: Path, changes: dict[str, int], says: str) -> None:
    head = head_of(config=with_model(**changes))
    plan: WritePlan = {"a.safetensors": [NamedSlice(name, full_slice(spec.shape)) for name, spec in SPECS.items()]}
    with pytest.raises(DataError, match=says) as caught:
        write_checkpoint(tmp_path, head, SPECS, plan, reader_of(VALUES))
    assert caught.value.file.endswith("manifest.json")
    assert list(tmp_path.iterdir()) == [], "what cannot be opened is never published"
