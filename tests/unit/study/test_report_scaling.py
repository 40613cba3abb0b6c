"""The report of a ladder: what the page holds is what `study law` prints, whatever rows there are so far."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from PIL import Image

from altup_moe.cli import main
from altup_moe.commands.study import STUDY
from altup_moe.study.ladder.law import LadderLaw, analyse
from altup_moe.study.ladder.law_text import held_out_rows, law_rows, multiplier_rows
from altup_moe.study.records import StudyRow
from altup_moe.study.report import command, scaling_pictures
from altup_moe.study.scaling.curves import best_losses
from tests.ladders import MORE, SIZES, TOKENS, ladder, write_coordinates
from tests.studies import study, write_study
from tests.unit.study.test_report import HOSTILE, Tags

report_command, law_command = STUDY.commands["report"].main, STUDY.commands["law"].main
WORDS = ["--shared", "--draws", "100"]
PICTURES = ("flops", "seconds", "held_out", "multipliers", "isoflop", "tuning", "coordinates")


@dataclass(frozen=True)
class Reported:
    """A ladder's report, what was printed, and its law computed beside it."""

    directory: Path
    page: Tags
    data: Any
    out: str
    law: LadderLaw


def reported(
    directory: Path, rows: list[StudyRow], words: list[str] = WORDS, drawn: tuple[str, ...] = ()
) -> tuple[Tags, str]:
    """The page, and what was printed. `drawn`: pictures that are; drawing them all takes seconds."""
    write_study(directory, rows)
    with contextlib.redirect_stdout(io.StringIO()) as out, mock.patch.object(command, "pictures", return_value=()):
        kept = {name: draw for name, draw in scaling_pictures.DRAWINGS.items() if name in drawn}
        with mock.patch.object(scaling_pictures, "DRAWINGS", kept):
            assert report_command([str(directory), *words]) == 0
    return Tags((directory / "report" / "report.html").read_text(encoding="utf-8")), out.getvalue()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Reported:
    """Of a whole ladder of three families with a coordinate check."""
    directory, rows = tmp_path_factory.mktemp("ladder"), list(ladder(laws=MORE))
    write_coordinates(directory)
    page, out = reported(directory, rows, drawn=PICTURES)
    return Reported(directory, page, page.data["scaling"], out, analyse(rows, "dense", shared=True, draws=100))


def test_the_page_s_numbers_are_the_analysis_s(made: Reported) -> None:
    names, law = [family["name"] for family in made.data["families"]], made.law
    assert names == list(MORE)
    assert len(made.data["cells"]) == len(MORE) * len(SIZES) * len(TOKENS)
    assert sorted(loss for cell in made.data["cells"] for loss in cell["losses"]) == sorted(
        point.loss for point in law.measured.points
    )
    predicted = {(names[c["family"]], c["n"], c["d"]): c for c in made.data["cells"] if c["predicted"]}
    assert len(predicted) == len(law.predictions) == len(MORE) * len(TOKENS)
    for one in law.predictions:
        cell = predicted[one.family, one.n, one.d]
        assert cell["predicted"] == [one.predicted, one.interval.low, one.interval.high]
        assert (cell["inside"], cell["largest"], cell["loss"]) == (one.inside, True, pytest.approx(one.measured))
    assert [(names[m["family"]], m["ratio"], m["low"], m["high"], m["verdict"]) for m in made.data["multipliers"]] == [
        (c.multiplier.family, c.multiplier.ratio, c.multiplier.interval.low, c.multiplier.interval.high, v[-1])
        for c, v in zip(law.compared, multiplier_rows(law)[1:], strict=True)
    ]
    for axis in ("flops", "seconds"):
        for drawn in made.data["best"][axis]:
            curve = best_losses(law.draws, names[drawn["family"]], axis)
            columns = zip(curve.cost, curve.n, curve.d, curve.loss, curve.low, curve.high, strict=True)
            for stop, expected in zip(drawn["stops"], columns, strict=True):
                assert stop == pytest.approx(expected, rel=1e-5)
            assert drawn["inside"] == curve.inside.tolist()
    assert len(made.data["best"]["flops"]) == len(made.data["best"]["seconds"]) == len(MORE)
    taken = {
        (panel["size"], names[line["family"]]): line["taken"]
        for panel in made.data["tuning"]
        for line in panel["lines"]
    }
    assert taken == {(one.size, one.family): one.found and one.found.value for one in law.measured.tuned}
    near = [made.data["cells"][i]["flops"] / part["budget"] for part in made.data["slices"] for i in part["cells"]]
    assert len(near) >= 4 * len(MORE)
    assert all(1 / 1.5 <= ratio <= 1.5 for ratio in near)


def test_study_law_prints_the_same_figures(made: Reported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert law_command([str(made.directory), *WORDS]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() in made.out
    for table in (law_rows(made.law), held_out_rows(made.law), multiplier_rows(made.law)):
        for cells in table:
            for cell in cells:
                assert cell in printed
                assert cell in made.page.text
    assert f"{sum(one.inside for one in made.law.predictions)} of 9 measured means lie inside" in made.page.text
    assert law_command([str(made.directory), *WORDS, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert json.loads((made.directory / "report" / "law.json").read_text()) == said
    with mock.patch.object(command, "pictures", return_value=()), mock.patch.object(scaling_pictures, "DRAWINGS", {}):
        assert report_command([str(made.directory), *WORDS, "--json", "--out", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["scaling"] == said


def test_pictures_and_tables_are_there(made: Reported) -> None:
    report = made.directory / "report"
    for name in PICTURES:
        with Image.open(report / f"scaling_{name}.png") as image:
            image.load()
            assert min(image.size) > 200
        drawn = (report / f"scaling_{name}.svg").read_text()
        assert "altup-k2" in drawn
        assert f"scaling_{name}.svg" in made.page.text
    assert "nats a token" in (report / "scaling_flops.svg").read_text()
    with (report / "law_curves.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(line["curve"], line["axis"]) for line in lines} == {
        ("best", "flops"),
        ("best", "seconds"),
        ("slice", "flops"),
    }
    assert [panel[0]["exponent"] for panel in made.data["coordinates"]["panels"]] == pytest.approx(
        [0, 0, 0, 0], abs=1e-9
    )
    assert len((report / "report.html").read_bytes()) < 350_000


def test_while_it_tunes_there_are_tries_alone(tmp_path: Path) -> None:
    tries = [row for row in ladder(edge=True) if row.role == "tuning"]
    page, out = reported(tmp_path, [*tries[:3], *tries[9:11]], drawn=("tuning",))
    assert "No law is fitted: no trained row of a ladder yet" in page.text
    assert "no law is fitted: no trained row" in out
    tuning = page.data["scaling"]["tuning"]
    assert [(panel["size"], [line["taken"] for line in panel["lines"]]) for panel in tuning] == [
        (32, [0.002]),
        (96, [0.002]),
    ]
    assert [panel["lines"][0]["edge"] for panel in tuning] == [False, True]
    assert "taken: dense 0.002 (edge)" in page.text
    assert not (tmp_path / "report" / "law.json").exists()
    assert (tmp_path / "report" / "scaling_tuning.png").exists()
    assert "width: report" in page.text


def test_too_few_points_are_drawn_without_a_law(tmp_path: Path) -> None:
    rows = [row for row in ladder() if row.overrides["model.hidden_size"] < 64]
    page, out = reported(tmp_path, rows, drawn=PICTURES)
    why = "dense, altup-k2: 36 points of 2 sizes and 6 token counts; a law needs more than 7 points, three sizes"
    assert f"No law is fitted: {why}" in page.text
    assert f"no law is fitted: {why}" in out
    assert len(page.data["scaling"]["cells"]) == 2 * 2 * 3
    assert page.data["scaling"]["best"] == {"flops": [], "seconds": []}
    written = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"scaling_flops.svg", "scaling_seconds.svg", "scaling_tuning.svg"} <= written
    assert not {"scaling_isoflop.svg", "scaling_multipliers.svg", "law.json"} & written


def test_the_largest_size_may_not_be_predicted_and_seconds_not_be_there(tmp_path: Path) -> None:
    rows = [row for row in ladder() if row.overrides["model.hidden_size"] != 96]
    rows = [replace(row, latency=None) if row.family == "altup-k2" else row for row in rows]
    page, _ = reported(tmp_path, rows)
    assert "The largest size is not predicted: dense, altup-k2: 36 points of 2 sizes" in page.text
    assert [m["axis"] for m in page.data["scaling"]["multipliers"]] == ["FLOPs"]
    assert len(page.data["scaling"]["best"]["seconds"]) == 1
    assert "Loss against seconds" in page.text
    assert not (tmp_path / "report" / "scaling_held_out.svg").exists()


def test_what_failed_is_left_out(tmp_path: Path) -> None:
    rows = list(ladder())
    lost = [replace(row, status="failed", quality=None, reason="it burnt") for row in rows if row.role == "trained"]
    own = [row for row in lost if row.family == "altup-k2"]
    page, _ = reported(tmp_path / "one", [row for row in rows if row.family == "dense" or row.role == "tuning"] + own)
    assert "36 row(s) failed, and are left out" in page.text
    assert len(page.data["scaling"]["best"]["flops"]) == 1
    assert page.data["scaling"]["multipliers"] == []
    page, _ = reported(tmp_path / "all", lost)
    assert "No law is fitted: all 72 trained rows of the ladder failed" in page.text
    # A row that was tried again counts once, by its last line.
    page, _ = reported(tmp_path / "again", [*lost, *rows, *rows[-9:]])
    assert "row(s) failed" not in page.text
    assert [len(cell["losses"]) for cell in page.data["scaling"]["cells"]] == [3] * (2 * 4 * 3)


def test_another_reference_and_laws_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--reference", "altup-k2", "--draws", "100"]
    page, out = reported(tmp_path, list(ladder()), words)
    assert law_command([str(tmp_path), *words]) == 0
    assert capsys.readouterr().out.strip() in out
    assert [m["family"] for m in page.data["scaling"]["multipliers"]] == [0, 0]


def test_a_study_without_a_ladder_has_no_such_part(tmp_path: Path) -> None:
    page, out = reported(tmp_path, study())
    assert "scaling" not in page.data
    assert "Scaling" not in page.text
    assert "law" not in out.split("wrote")[0].splitlines()[0]
    assert not [path for path in (tmp_path / "report").iterdir() if "scaling" in path.name or "law" in path.name]


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, list(ladder())[:6])
    (tmp_path / "coordinates.json").write_text('{"points": [{"family": "dense"}]}')
    for words, says in (
        ([], f"{tmp_path}/coordinates.json: points.0.parametrization=None; text would fit"),
        (["--draws", "0"], "draws=0"),
        (["--reference", "nobody"], "reference='nobody': no row is of this family; one of dense would fit"),
    ):
        assert main(["study", "report", str(tmp_path), *words]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_text_of_a_ladder_stays_text(tmp_path: Path) -> None:
    rows = [replace(row, family=f"_{HOSTILE}{row.family}") for row in ladder()]
    point = {"family": HOSTILE, "parametrization": HOSTILE, "step": 1, "name": HOSTILE}
    points = [{**point, "width": width, "rms": 1.0} for width in (32, 64)]
    (tmp_path / "coordinates.json").write_text(json.dumps({"points": points}))
    page, _ = reported(tmp_path, rows, [*WORDS, "--reference", f"_{HOSTILE}dense"], PICTURES)
    assert [attrs for tag, attrs in page.tags if tag == "script"] == [{"type": "application/json", "id": "data"}, {}]
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert page.data["scaling"]["families"][0]["name"].startswith(f"_{HOSTILE}")
    for name in PICTURES:
        assert "<script" not in (tmp_path / "report" / f"scaling_{name}.svg").read_text(encoding="utf-8")
