"""The page of a run in a headless Chromium: curves and heat maps are drawn, answer mouse and keys, and fit a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from altup_moe.commands.show import main
from altup_moe.config import AltUpConfig
from tests.browser import all_of, button, hovered, needs_browser, one, opened, screenshot, tip
from tests.show_runs import write_run

pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

pytestmark = needs_browser
DRAWN = "#chart-lm_loss svg .series"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two made-up runs; what one says is hostile."""
    root = tmp_path_factory.mktemp("runs")
    wide = write_run(root / "wide")
    narrow = write_run(root / "<b>narrow", last=260, seed=1, shift=0.2, altup=AltUpConfig(width=1))
    samples = narrow / "samples.jsonl"
    samples.write_text(samples.read_text().replace("The cat", HOSTILE.replace('"', "'")))
    for words in ([wide], [wide, narrow]):
        assert main([str(path) for path in words]) == 0
    return [wide, narrow]


def test_one_run_at_a_desk(runs: list[Path], tmp_path: Path, browser: Any) -> None:
    with opened(browser, runs[0] / "report.html", DRAWN, 1280, 900) as driver:
        screenshot(driver, tmp_path / "desk.png")
        charts = [chart.get_attribute("id") for chart in all_of(driver, ".chart")]
        assert len(charts) == 16
        assert all(all_of(driver, f"#{chart} svg") for chart in charts)
        # The resume is a dashed line, and a value is read by mouse and by keys.
        assert len(all_of(driver, "#chart-lm_loss .event")) == 1
        said = hovered(driver, one(driver, "#chart-grad_norm .hit"))
        assert said.startswith("gradient norm: ")
        assert "step " in said
        area = one(driver, "#chart-learning_rate .hit")
        area.send_keys(Keys.ARROW_LEFT)
        WebDriverWait(driver, 10).until(lambda d: tip(d).startswith("learning rate: "))
        before = tip(driver)
        area.send_keys(Keys.ARROW_LEFT)
        assert tip(driver) != before
        Select(one(driver, "#runs-x")).select_by_visible_text("tokens seen")
        assert "tokens seen" in one(driver, "#chart-lm_loss").text

        # Every layer at a time, chosen by keys; one layer over time.
        assert one(driver, "#routing-at").text == "up to step 400"
        hovered_last = hovered(driver, one(driver, "#routing-layers .hit"))
        assert "up to step 400" in hovered_last
        one(driver, "#routing-step").send_keys(Keys.HOME)
        assert one(driver, "#routing-at").text == "up to step 8"
        area = one(driver, "#routing-layers .hit")
        area.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        layer, step, times = tip(driver).splitlines()
        assert (layer, step) == ("layer 1, expert 5", "up to step 8")
        assert float(times.split()[0]) > 2
        Select(one(driver, "#routing-layer")).select_by_visible_text("3")
        assert hovered(driver, one(driver, "#routing-time .hit")).startswith("layer 3, expert ")
        ActionChains(driver).move_to_element(one(driver, "h1")).perform()
        WebDriverWait(driver, 10).until(lambda d: not tip(d))


def test_two_runs_beside_each_other(runs: list[Path], tmp_path: Path, browser: Any) -> None:
    with opened(browser, runs[0] / "comparison.html", DRAWN, 1280, 900) as driver:
        assert len(all_of(driver, DRAWN)) == 2
        button(driver, "runs", "<b>narrow").send_keys(Keys.SPACE)
        names = [line.get_attribute("data-name") for line in all_of(driver, DRAWN)]
        assert names == ["wide"]
        button(driver, "runs", "wide").click()
        assert one(driver, "#chart-lm_loss").text.endswith("nothing to draw.")
        button(driver, "runs", "<b>narrow").click()
        Select(one(driver, "#routing-run")).select_by_visible_text("<b>narrow")
        assert one(driver, "#routing-at").text == "up to step 260"
        # What runs say is text.
        assert len(all_of(driver, "script")) == 2
        assert not all_of(driver, "img, td b")


def test_both_fit_a_phone(runs: list[Path], tmp_path: Path, browser: Any) -> None:
    for name in ("report.html", "comparison.html"):
        with opened(browser, runs[0] / name, DRAWN, 390, 844, phone=True) as driver:
            assert driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
            screenshot(driver, tmp_path / "phone.png")
            sizes = driver.execute_script(
                "return [...document.querySelectorAll('.chart text')]"
                ".map(t => parseFloat(getComputedStyle(t).fontSize))"
            )
            assert min(sizes) >= 11
