"""Files that claim a million tensors, by every command that reads a checkpoint: one line, little memory."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from altup_moe.checkpoint.manifest import MANIFEST
from altup_moe.checkpoint.store import find_checkpoint
from altup_moe.cli import main
from altup_moe.config.run_directory import tokenizer_dir
from altup_moe.data.tokenizer import train_bpe
from tests.unit.checkpoint.damaged import content, seal
from tests.unit.checkpoint.models import with_model
from tests.unit.commands.hub_models import save_model
from tests.unit.commands.test_convert import write_run

CLAIMED = 1_000_000
MEGABYTES, SECONDS = 200, 2.0
CONFIG = with_model(vocab_size=290)
READERS: dict[str, list[str]] = {
    "train": ["train", "RUN/config.yaml", "--log.run_dir", "RUN", "--log.tensorboard", "false"],
    "evaluate": ["evaluate", "RUN"],
    "generate": ["generate", "RUN", "--prompt", "a"],
    "inspect": ["inspect", "RUN"],
    "reshard": ["reshard", "RUN", "OUT"],
    "grow": ["grow", "RUN", "OUT", "--altup.width", "4"],
    "convert export": ["convert", "export", "RUN", "OUT"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint."""
    directory = tmp_path_factory.mktemp("hostile") / "run"
    directory.mkdir()
    write_run(directory, CONFIG)
    return directory


@pytest.fixture(scope="module")
def claiming(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A safetensors file whose header has a million tensors of no items."""
    path = tmp_path_factory.mktemp("claims") / "claims.safetensors"
    entry = '"t{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    text = ("{" + ",".join(entry.format(n) for n in range(CLAIMED)) + "}").encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    return path


@pytest.fixture(scope="module")
def with_header(run: Path, claiming: Path) -> Path:
    """A copy of the run with that file as its shard, and hashes that fit."""
    spoilt = Path(shutil.copytree(run, run.with_name("header")))
    directory = find_checkpoint(spoilt)
    manifest = content(directory)
    for name in manifest["files"]:
        (directory / name).unlink()
        os.link(claiming, directory / name)
    seal(directory, manifest)
    return spoilt


@pytest.fixture(scope="module")
def with_manifest(run: Path) -> Path:
    """A copy of the run whose manifest has a million tensors."""
    spoilt = Path(shutil.copytree(run, run.with_name("manifest")))
    directory = find_checkpoint(spoilt)
    head = json.dumps({**content(directory), "tensors": {}}).removesuffix("{}}")
    rows = ",".join(f'"weights/{n}":{{"shape":[0],"dtype":"F32","pieces":[]}}' for n in range(CLAIMED))
    seal(directory, f"{head}{{{rows}}}}}")
    return spoilt


def _memory(key: str) -> float:
    return int(re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) / 1024  # type: ignore[index]


def _refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with; its peak of memory and processor time are within bounds."""
    gc.collect()
    capsys.readouterr()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = _memory("VmRSS"), time.process_time()
    code = main(words)
    seconds, grown = time.process_time() - started, _memory("VmHWM") - before
    said = capsys.readouterr().err
    assert code == 2, said
    assert said.count("\n") == 1, said
    assert grown < MEGABYTES, f"{grown:.0f} MB"
    assert seconds < SECONDS, f"{seconds:.1f} s of the processor"
    return said


def _words(reader: str, run: Path, out: Path) -> list[str]:
    return [word.replace("RUN", str(run)).replace("OUT", str(out)) for word in READERS[reader]]


@pytest.fixture(scope="module", autouse=True)
def _imported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What a command imports the first time is not counted: each once reads the good run, or refuses it early."""
    for reader in READERS:
        words = _words(reader, run.with_name("nothing"), tmp_path_factory.mktemp("out") / "out")
        assert main(words) == 2
    import altup_moe.inference.evaluate
    import altup_moe.inference.generate
    import altup_moe.inference.grow
    import altup_moe.inference.hub
    import altup_moe.train.loop  # noqa: F401


@pytest.mark.parametrize("reader", READERS)
def test_a_header(reader: str, with_header: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = _refused(_words(reader, with_header, tmp_path / "out"), capsys)
    assert "is no safetensors file (its header would have " in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("reader", READERS)
def test_a_manifest(reader: str, with_manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = _refused(_words(reader, with_manifest, tmp_path / "out"), capsys)
    assert f"{MANIFEST}: is no checkpoint manifest (it has more than 1,000,000 entries)" in said


def test_an_import(claiming: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    os.link(claiming, llama / "model.safetensors")
    said = _refused(["convert", "import", str(llama), str(tmp_path / "run")], capsys)
    assert "is no safetensors file (it has more than 200,000 entries)" in said


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A directory of a tiny model, and its tokenizer."""
    save_model(tmp_path / "llama", "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("reader", ["evaluate", "generate", "convert export"])
def test_another_tokenizer(reader: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run's tokenizer was replaced by one that fits as well."""
    spoilt = Path(shutil.copytree(run, tmp_path / "run"))
    directory = find_checkpoint(spoilt)
    seal(directory, {**content(directory), "tokenizer_sha256": "ab" * 32})
    before = main(_words(reader, spoilt, tmp_path / "out"))
    said = capsys.readouterr().err
    assert before == 2
    assert re.search(
        r"tokenizer/tokenizer\.json: is not the tokenizer of .*: sha256 [0-9a-f]{12}, not abababababab\n$", said
    )


def test_the_tokenizer_of_its_run_is_taken(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from altup_moe.data.tokenizer import load_tokenizer

    spoilt = Path(shutil.copytree(run, tmp_path / "run"))
    directory = find_checkpoint(spoilt)
    known = load_tokenizer(tokenizer_dir(spoilt)).sha256
    seal(directory, {**content(directory), "tokenizer_sha256": known})
    assert main(["generate", str(spoilt), "--prompt", "a"]) == 0
    shutil.rmtree(tokenizer_dir(spoilt))
    train_bpe(["all other words make another vocabulary. " * 9], 290, tokenizer_dir(spoilt))
    assert main(["generate", str(spoilt), "--prompt", "a"]) == 2
    assert "is not the tokenizer of" in capsys.readouterr().err
