"""Checkpoints whose hashes all fit, and which are wrong nevertheless: they are refused by name, and nothing is run."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from altup_moe.checkpoint.manifest import MANIFEST
from altup_moe.checkpoint.store import find_checkpoint
from tests.unit.checkpoint.damaged import (
    WEIGHTS,
    content,
    edit_header,
    header_end,
    open_and_verify,
    refused,
    rewrite,
    seal,
)
from tests.unit.checkpoint.models import with_model

EXPERT = "model.layers.1.mlp.experts.1.down_proj.weight"


def names_of(manifest: dict[str, Any], kind: str, file: str) -> list[str]:
    """Tensors of a kind that lie whole in a file."""
    return [
        n
        for n, t in manifest["tensors"].items()
        if n.startswith(kind) and len(t["pieces"]) == 1 and t["pieces"][0]["file"] == file
    ]


def test_the_good_one_stays_good(spoilt: Path) -> None:
    directory = find_checkpoint(spoilt)
    open_and_verify(spoilt)
    seal(directory, content(directory))
    edit_header(directory / WEIGHTS, lambda header: None)
    seal(directory, content(directory))
    open_and_verify(spoilt)


def test_two_keys_swapped(spoilt: Path) -> None:
    """Equal shapes: only the hash can know."""
    directory = find_checkpoint(spoilt)
    manifest = content(directory)
    first, second = [
        n for n in names_of(manifest, "weights/", WEIGHTS) if n.endswith(("q_proj.weight", "o_proj.weight"))
    ][:2]
    assert manifest["tensors"][first]["shape"] == manifest["tensors"][second]["shape"]
    before = (directory / WEIGHTS).stat().st_size
    swapped = {first: second, second: first}

    def exchange(raw: bytes) -> bytes:
        header, end = json.loads(raw[8 : header_end(raw)]), header_end(raw)
        text = json.dumps({swapped.get(key, key): value for key, value in header.items()}, separators=(",", ":"))
        return raw[:8] + text.encode().ljust(end - 8) + raw[end:]

    rewrite(directory / WEIGHTS, exchange)
    assert (directory / WEIGHTS).stat().st_size == before
    refused(spoilt, WEIGHTS, "SHA-256 differs")


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/tmp/x.safetensors", "a/x.safetensors", "x\0.safetensors", "größe.safetensors", "..", ".x"],
)
def test_names_in_the_manifest(spoilt: Path, name: str) -> None:
    directory = find_checkpoint(spoilt)
    (directory.parent / "x.safetensors").write_bytes((directory / WEIGHTS).read_bytes())
    seal(directory, (directory / MANIFEST).read_text().replace(WEIGHTS, json.dumps(name)[1:-1]))
    refused(spoilt, MANIFEST, "is no bare file name")


class Payload:
    """Creates a file if anything unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("by", ["torch", "torch, old form", "pickle"])
def test_a_pickle_is_never_run(spoilt: Path, by: str) -> None:
    directory, proof = find_checkpoint(spoilt), spoilt.parent / "executed"
    path = directory / WEIGHTS
    if by == "pickle":
        path.write_bytes(pickle.dumps(Payload(proof)))
    else:
        torch.save({"x": Payload(proof)}, path, _use_new_zipfile_serialization=by == "torch")
    manifest = content(directory)
    seal(directory, manifest)
    refused(spoilt, WEIGHTS, "is no safetensors file")
    assert not proof.exists()
    if by == "pickle":
        pickle.loads(path.read_bytes())
        assert proof.exists(), "the trap itself works"


def drop(manifest: dict[str, Any], directory: Path, names: list[str]) -> None:
    """Take tensors out of the manifest and of their files."""
    pieces = [piece for name in names for piece in manifest["tensors"].pop(name)["pieces"]]
    for file in {piece["file"] for piece in pieces}:
        gone = {piece["key"] for piece in pieces if piece["file"] == file}
        raw = (directory / file).read_bytes()
        header, data, kept = json.loads(raw[8 : header_end(raw)]), b"", {}
        for key, entry in header.items():
            if key not in gone:
                part = raw[header_end(raw) :][slice(*entry["data_offsets"])]
                kept[key] = {**entry, "data_offsets": [len(data), len(data) + len(part)]}
                data += part
        text = json.dumps(kept).encode()
        (directory / file).write_bytes(len(text).to_bytes(8, "little") + text + data)


def missing(*starts: str) -> Callable[[dict[str, Any], Path], object]:
    return lambda m, d: drop(m, d, [n for n in m["tensors"] if n.startswith(starts)])


def overlapping(manifest: dict[str, Any], directory: Path) -> None:
    pieces = manifest["tensors"]["exp_avg/model.embed_tokens.weight"]["pieces"]
    pieces[1]["box"] = pieces[0]["box"]


def shifted(manifest: dict[str, Any], directory: Path) -> None:
    manifest["tensors"]["exp_avg/model.embed_tokens.weight"]["pieces"][1]["box"][0] = [9, 17]


def named_twice(manifest: dict[str, Any], directory: Path) -> None:
    tensors = manifest["tensors"]
    a, b = f"weights/{EXPERT}", f"weights/{EXPERT.replace('experts.1', 'experts.2')}"
    tensors[a]["pieces"] = tensors[b]["pieces"]


def kind(manifest: dict[str, Any], directory: Path) -> None:
    tensors = manifest["tensors"]
    tensors["secrets/x"] = tensors.pop("rng/0/cpu")


def retyped(name: str, dtype: str) -> Callable[[dict[str, Any], Path], object]:
    """Another dtype of the same size, in the manifest and in the files."""

    def change(manifest: dict[str, Any], directory: Path) -> None:
        manifest["tensors"][name]["dtype"] = dtype
        for piece in manifest["tensors"][name]["pieces"]:
            edit_header(directory / piece["file"], lambda header, key=piece["key"]: header[key].update(dtype=dtype))

    return change


def claims(what: str, value: object) -> Callable[[dict[str, Any], Path], object]:
    return lambda m, d: m["tensors"][f"weights/{EXPERT}"].update({what: value})


LIES: dict[str, tuple[Callable[[dict[str, Any], Path], object], str, str]] = {
    "an expert is missing": (missing(f"weights/{EXPERT}"), MANIFEST, f"lacks weights/{EXPERT}"),
    "an expert and all of its state": (
        missing(*(f"{k}/model.layers.1.mlp.experts.1." for k in ("weights", "main", "exp_avg", "exp_avg_sq"))),
        MANIFEST,
        "lacks weights/model.layers.1.mlp.experts.1.",
    ),
    "a layer is missing": (missing("weights/model.layers.1."), MANIFEST, "lacks weights/model.layers.1."),
    "moments of one parameter": (missing(f"exp_avg_sq/{EXPERT}"), MANIFEST, f"lacks exp_avg_sq/{EXPERT}"),
    "no first moments": (missing("exp_avg/"), MANIFEST, "lacks exp_avg/"),
    "no second moments": (missing("exp_avg_sq/"), MANIFEST, "lacks exp_avg_sq/"),
    "no moments, but fp32 copies": (missing("exp_avg/", "exp_avg_sq/"), MANIFEST, "lacks exp_avg/"),
    "a copy missing": (missing(f"main/{EXPERT}"), MANIFEST, f"lacks main/{EXPERT}"),
    "half of a tensor": (
        lambda m, d: m["tensors"]["exp_avg/model.embed_tokens.weight"]["pieces"].pop(),
        MANIFEST,
        "64 of 128 elements are missing",
    ),
    "pieces overlap": (overlapping, MANIFEST, "overlaps another"),
    "a piece outside": (shifted, MANIFEST, "does not lie in"),
    "a piece named twice": (named_twice, "rank_00000_002.safetensors", "or the manifest has it twice"),
    "a tensor not named": (lambda m, d: m["tensors"].pop("rng/0/cpu"), "rank_00000_002.safetensors", "holds rng/0/cpu"),
    "an unknown kind": (kind, MANIFEST, "secrets/x is of no known kind"),
    "another dtype claimed": (claims("dtype", "F16"), "rank_00000_001.safetensors", "is BF16 [8, 4], not F16 [8, 4]"),
    "another shape claimed": (claims("shape", [4, 8]), MANIFEST, "does not lie in"),
    "weights as integers": (retyped(f"weights/{EXPERT}", "I64"), "rank_00000_001.safetensors", "does not follow"),
    "moments as integers": (retyped(f"exp_avg/{EXPERT}", "I32"), MANIFEST, f"exp_avg/{EXPERT} is I32; it can be F32"),
    "a huge shape": (claims("shape", [1 << 61, 1 << 61]), MANIFEST, "elements are missing"),
    "a number of 400 digits": (claims("shape", [10**400, 4]), MANIFEST, "are no sizes"),
    "a wrong key": (
        lambda m, d: m["tensors"][f"weights/{EXPERT}"]["pieces"][0].update(key="nothing"),
        "rank_00000_001.safetensors",
        "lacks nothing",
    ),
    "another model": (
        lambda m, d: m["config"]["model"].update(with_model(vocab_size=32).to_dict()["model"]),
        MANIFEST,
        "the model of its configuration has [32, 8]",
    ),
    "more layers than could be": (lambda m, d: m["config"]["model"].update(num_layers=10**15), MANIFEST, "too few"),
    "an unknown key of the configuration": (lambda m, d: m["config"]["model"].update(depth=3), MANIFEST, "model.depth"),
    "a wrong type in the configuration": (
        lambda m, d: m["config"]["model"].update(num_layers="2"),
        MANIFEST,
        "model.num_layers",
    ),
    "a configuration that is no mapping": (lambda m, d: m["config"].update(model=[2]), MANIFEST, "configuration"),
    "a newer format": (lambda m, d: m.update(format_version=3), MANIFEST, "format version 3; this program reads 2"),
    "a field that is missing": (lambda m, d: m.pop("step"), MANIFEST, "an entry has"),
    "a field too many": (lambda m, d: m.update(loader="os.system"), MANIFEST, "an entry has"),
    "a negative step": (lambda m, d: m.update(step=-1), MANIFEST, "step is -1"),
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.timeout(20)
def test_lies_with_hashes_that_fit(spoilt: Path, name: str) -> None:
    change, file, says = LIES[name]
    directory = find_checkpoint(spoilt)
    manifest = content(directory)
    change(manifest, directory)
    seal(directory, manifest)
    refused(spoilt, file, says)


TEXTS = {
    "nested deeply": (lambda text: "[" * 200_000, "nested too deeply"),
    "NaN": (lambda text: text.replace('"step": 3', '"step": NaN'), "NaN"),
    "infinity": (lambda text: text.replace('"step": 3', '"step": 1e999'), "too large"),
    "a number of 5000 digits": (lambda text: text.replace('"step": 3', '"step": 1' + "0" * 5000), "no checkpoint"),
    "a key twice": (lambda text: text.replace('"step": 3', '"step": 3, "step": 3'), "'step' stands twice"),
    "a tensor twice": (
        lambda text: text.replace('"tensors": {', '"tensors": {"rng/0/cpu": {}, ', 1),
        "'rng/0/cpu' stands twice",
    ),
    "no object": (lambda text: "3", "a JSON int instead of an object"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_json_that_is_too_clever(spoilt: Path, name: str) -> None:
    change, says = TEXTS[name]
    directory = find_checkpoint(spoilt)
    before = (directory / MANIFEST).read_text()
    seal(directory, change(before))
    assert (directory / MANIFEST).read_text() != before
    refused(spoilt, MANIFEST, says)


def test_a_key_twice_in_a_shards_header(spoilt: Path) -> None:
    directory = find_checkpoint(spoilt)
    raw = (directory / WEIGHTS).read_bytes()
    text = raw[8 : header_end(raw)].rstrip()
    key = next(iter(json.loads(text)))
    text = text[:-1] + f', "{key}": 1'.encode() + b"}"
    (directory / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + raw[header_end(raw) :])
    seal(directory, content(directory))
    refused(spoilt, WEIGHTS, "stands twice")
