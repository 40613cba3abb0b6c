"""`altup-moe study report`: what it prints, the files it writes, and that a study's text stays text."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from altup_moe.commands.study import STUDY
from altup_moe.config import UserError
from altup_moe.report.curves import BINS
from altup_moe.report.formatting import count, digits, duration
from altup_moe.study.records import CurvePoint, Quality, StudyRow
from altup_moe.study.report.models import Model, families
from altup_moe.study.report.plot_data import curves, loads
from tests.studies import failed, row, study, write_study

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)">&amp;$x^2$'
FILES = ["report.html", "front.svg", "front.png", "curves.svg", "curves.png", "load.svg", "load.png", "rows.csv"]

report_command = STUDY.commands["report"].main


@dataclass(frozen=True)
class Reported:
    """A study's report, and what was printed."""

    directory: Path
    files: Path
    out: str


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """Of the made-up study."""
    directory = write_study(tmp_path_factory.mktemp("study"), study())
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert report_command([str(directory)]) == 0
    return Reported(directory, directory / "report", out.getvalue())


class Tags(HTMLParser):
    """Elements of a page, its text, and the JSON inside."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data: Any = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, content: str) -> None:
        if self.tags[-1:] == [("script", {"type": "application/json", "id": "data"})] and self.data is None:
            self.data = json.loads(content)
        self.text += content


def test_the_files_are_there_whole_and_nothing_else_is(reported: Reported) -> None:
    assert {path.name for path in reported.files.iterdir()} == {*FILES, "models.csv"}
    for name in ("front", "curves", "load"):
        with Image.open(reported.files / f"{name}.png") as image:
            image.load()
            assert min(image.size) > 400
        assert "<svg" in (reported.files / f"{name}.svg").read_text()


def test_the_same_rows_give_the_same_files_and_one_object_of_json(
    reported: Reported, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "b"
    assert report_command([str(reported.directory), "--json", "--out", str(out)]) == 0
    for name in FILES:
        assert (out / name).read_bytes() == (reported.files / name).read_bytes(), name
    found = json.loads(capsys.readouterr().out)
    models = {model["name"]: model for model in found["models"]}
    assert models["altup-moe-l-e16"]["speed_at_equal_quality"]["train_step"]["interval"]["high"] is None
    assert models["altup-m-k2"]["speed_at_equal_quality"]["train_step"]["ratio"] > 1.2
    assert models["moe-m-e8"]["speed_at_equal_quality"]["decode"] is None
    assert len(found["failed"]) == 2
    assert all(Path(file).is_file() for file in found["files"])


def test_the_page_holds_its_data_and_asks_for_nothing(reported: Reported) -> None:
    text = (reported.files / "report.html").read_text(encoding="utf-8")
    page = Tags(text)
    assert len(text.encode()) < 200_000
    sources = [attrs[key] for _, attrs in page.tags for key in ("src", "href") if key in attrs]
    assert sources == ["data:,", "#rules", "#rules"]
    assert [url for url in re.findall(r"https?://[^\"'\s)]+", text) if "w3.org" not in url] == []
    policy = next(attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    data = page.data
    assert [f["name"] for f in data["families"]] == ["dense", "altup", "moe", "altup + moe"]
    assert [a["key"] for a in data["axes"]] == ["train_step", "prefill", "decode", "parameters", "active_parameters"]
    names = [m["name"] for m in data["models"]]
    assert "moe-m-e8" in [names[i] for i in data["fronts"]["loss"]["active_parameters"]]
    assert "moe-m-e8" not in [names[i] for i in data["fronts"]["loss"]["parameters"]]
    assert data["models"][names.index("moe-m-e8")]["x"]["decode"] is None
    rings = [names[i] for i in data["rings"]["loss"]["train_step"]]
    fronts = [names[i] for i in data["fronts"]["loss"]["train_step"]]
    assert rings == ["dense-s", "altup-s-k2", "altup-moe-m-e8", "altup-moe-l-e16"]
    assert [name for name in fronts if name not in rings] == ["dense-m", "altup-m-k2", "altup-m-k4", "moe-m-e8"]
    assert "Beside the reference's model of nearest size" in page.text
    assert "1.09[1.05, 1.14] in pairs, p 0.019" in page.text
    assert len(data["loads"]) == 9
    assert [layer["layer"] for layer in data["loads"][0]["layers"]] == [1, 3, 5]
    for needed in ("out of memory: 71.2 GiB wanted", "Some CPU 2.0 GHz", "0123456789ab", "seeds: [0, 1, 2]"):
        assert needed in page.text


def test_stdout_gives_the_headline_the_failures_and_the_files(reported: Reported) -> None:
    out = reported.out
    assert re.search(
        r"^altup-m-k2 +altup +3 +12.8M +12.8M +3\.2\d+ ± 0\.0\d+ .* 1\.\d\d \[1\.\d\d, 1\.\d\d\], p 0\.\d+$", out, re.M
    )
    assert "altup-moe-l-e16  altup + moe" in out
    assert re.search(
        r"not reached: better than the whole curve \(more than 1\.12\) \[1\.07, better\], p 0\.058, not decided", out
    )
    assert re.search(r"^  altup-s-k2 +-0\.0824 \[-0\.0989, -0\.0658\] in pairs, p 0\.0087; against dense-s$", out, re.M)
    assert re.search(r"^  moe-m-e8 +dense-m +1\.72 \[1\.65, 1\.79\] in pairs, p 0\.0014  .* -$", out, re.M)
    assert "moe-l-e64, seed 0: out of memory: 71.2 GiB wanted, 62.0 GiB there" in out
    assert f"wrote {reported.files / 'report.html'}" in out
    assert "note:" not in out


def test_the_words_say_that_no_difference_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = (0, 1, 2)
    dense = [row(f"d{i}", s, 4.0 - i + 0.01 * s, 10.0**i, width=96 * i) for i in (1, 2) for s in seeds]
    wide = [row("wide", s, 2.5 + 0.01 * s, 31.6 * (1 + 0.2 * s), family="altup", width=64) for s in seeds]
    same = [row("same", s, 3.0 + 0.01 * s, 10.0, family="altup", width=64) for s in seeds]
    near = [row("near", s, 2.99 + 0.01 * s, 10.0 + s, family="altup", width=64) for s in seeds]
    assert report_command([str(write_study(tmp_path, [*dense, *wide, *same, *near]))]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^wide .*\d\], p 0\.\d+, no difference found", out, re.M)
    assert re.search(r"^  same +\+0\.0000 \[-0\.0227, \+0\.0227\], p 1, no difference found; against d1$", out, re.M)
    assert re.search(
        r"^  near +-0\.0100 \[-0\.0327, \+0\.0127\], p 0\.58, no difference found \(23 seeds would tell it\)", out, re.M
    )
    assert re.search(r"^  near +d1 +1\.10 \[.*\], p 0\.44, no difference found \(14 seeds would tell it\)", out, re.M)
    page = Tags((tmp_path / "report" / "report.html").read_text())
    assert page.text.count("no difference found") >= 3


def test_the_tables_have_every_row_and_every_model(reported: Reported) -> None:
    with (reported.files / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (reported.files / "models.csv").open(newline="") as file:
        models = {line["name"]: line for line in csv.DictReader(file)}
    written = study()
    assert [(r["name"], int(r["seed"]), r["status"]) for r in rows] == [(r.name, r.seed, r.status) for r in written]
    first = written[0]
    assert first.quality is not None
    assert float(rows[0]["valid_loss"]) == first.quality.valid_loss
    assert (rows[-1]["valid_loss"], rows[-1]["reason"]) == ("", "step 212: the loss is not finite")
    assert len(models) == 10
    assert models["altup-m-k2"]["train_step_speed_reached"] == "yes"
    assert float(models["altup-m-k2"]["train_step_speed_low"]) > 1
    assert models["altup-moe-l-e16"]["train_step_speed_high"] == "better"
    assert models["dense-s"]["train_step_speed"] == ""


def hostile() -> list[StudyRow]:
    """Rows whose every text would be a script."""
    rows = [*study()[:4], *study()[-6:]]
    made = [
        replace(r, name=HOSTILE + r.name, family=f"_{HOSTILE}{r.family}", study=HOSTILE, overrides={HOSTILE: HOSTILE})
        for r in rows
    ]
    return [replace(r, reason=HOSTILE, hardware=replace(r.hardware, processor=HOSTILE)) for r in made]


def test_text_of_a_study_stays_text(tmp_path: Path) -> None:
    write_study(tmp_path, hostile())
    (tmp_path / "study.yaml").write_text(HOSTILE)
    assert report_command([str(tmp_path)]) == 0
    page = Tags((tmp_path / "report" / "report.html").read_text(encoding="utf-8"))
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert page.data["models"][0]["name"].startswith(HOSTILE)
    assert page.text.count(HOSTILE) > 10
    for name in ("front", "curves", "load"):
        drawn = (tmp_path / "report" / f"{name}.svg").read_text(encoding="utf-8")
        assert "<script" not in drawn
    assert "$x^2$" in drawn


def test_a_study_in_which_all_failed_still_has_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_study(tmp_path, [failed("a"), failed("b")])
    (directory / "study.yaml").unlink()
    assert report_command([str(directory)]) == 0
    assert "2 rows, 0 models, 2 failed" in capsys.readouterr().out
    assert {p.name for p in (directory / "report").iterdir()} == {"report.html", "rows.csv", "models.csv"}


def test_a_study_without_latencies_curves_and_experts_has_its_page(tmp_path: Path) -> None:
    directory = write_study(tmp_path, [row("a", ms=None), row("b", ms=None, family="altup", loss=2.9)])
    assert report_command([str(directory)]) == 0
    assert {p.name for p in (directory / "report").iterdir()} >= {"front.png", "report.html"}
    bare = write_study(tmp_path / "bare", [row("a", ms=None, parameters=None)])
    assert report_command([str(bare)]) == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--bootstrap", "2000"], "bootstrap"),
        (["--out", "rows.jsonl"], "rows.jsonl is a file; a directory would fit"),
        (["--reference", "nope"], "--reference='nope': no row is of this family; one of dense would fit"),
    ],
)
def test_what_cannot_be_is_one_line(
    args: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_study(tmp_path, [row("a")])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=re.escape(says)):
        report_command([str(directory), *args])
    assert not (tmp_path / "report").exists()


def test_no_rows_and_broken_rows_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.jsonl"):
        report_command([str(tmp_path)])
    (tmp_path / "rows.jsonl").write_text("")
    with pytest.raises(UserError, match="no rows yet"):
        report_command([str(tmp_path)])
    (tmp_path / "rows.jsonl").write_text(row("a").line() + "\n{}\n")
    with pytest.raises(UserError, match="line 2"):
        report_command([str(tmp_path)])


def test_long_curves_are_means_of_neighbours_over_seeds() -> None:
    def points(shift: float) -> list[CurvePoint]:
        return [CurvePoint(i, 10 * i, shift + i, shift if i == 600 else None) for i in range(1, 601)]

    rows = tuple(replace(row("a", seed), curve=points(seed)) for seed in (0, 2))
    (curve,) = curves(families([Model("a", "dense", rows)]))
    assert len(curve.train) == BINS
    assert curve.train[0] == (40, pytest.approx(3.5), pytest.approx(2.5), pytest.approx(4.5))
    assert curve.valid == [(6000, 1.0, 0.0, 2.0)]


def test_loads_stay_with_their_row_and_layer() -> None:
    found = loads([Model("a", "moe", tuple(r for r in study() if r.name == "moe-m-e8"))])
    assert [(r.seed, [one.layer for one in layers]) for r, layers in found] == [(s, [1, 3, 5]) for s in range(3)]


def test_numbers_are_short() -> None:
    assert [count(n) for n in (None, 950, 12_345, 999_600, 36_000_000, 1.2e9)] == [
        "-", "950", "12.3k", "1M", "36M", "1.2B"
    ]  # fmt: skip
    times = (0.5, 59.4, 60, 3725, 3600, 90_000)
    assert [duration(n) for n in times] == ["0.500 s", "59.4 s", "1 min", "1 h 2 min", "1 h", "1 d 1 h"]
    assert [digits(n) for n in (0, 0.0123, 1.5, 12.34, 1234.5)] == ["0", "0.0123", "1.50", "12.3", "1,234"]


@pytest.mark.parametrize(("bits", "said"), [({0: 0.42, 1: 0.43}, False), ({0: 0.42, 1: 0.42}, True)])
def test_losses_of_one_seed_must_be_of_the_same_tokens(
    bits: dict[int, float], said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A seed may have a held-out part of its own; two models of a seed may not."""
    rows = []
    for name, off in (("small", 0.0), ("large", 0.01 if said else 0.0)):
        for seed, ratio in bits.items():
            one = row(name, seed, ms=100.0 if name == "small" else 200.0)
            rows.append(replace(one, quality=Quality(3.0, 3.0 * (ratio + off), 2.95)))
    assert report_command([str(write_study(tmp_path, rows))]) == 0
    assert ("compare bits per byte" in capsys.readouterr().out) == said
