"""A ladder's part of the page in a headless Chromium: figures are drawn, answer, and fit a phone, in the dark too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from altup_moe.study.report import command
from tests.browser import all_of, button, hovered, needs_browser, one, opened, screenshot
from tests.ladders import MORE, SIZES, TOKENS, ladder, write_coordinates
from tests.studies import write_study
from tests.unit.study.test_report import report_command

pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.keys import Keys

pytestmark = needs_browser
DRAWN = "#flops svg .point"
CELLS = len(MORE) * len(SIZES) * len(TOKENS)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a ladder of three families; the best rate of the largest size is at an edge, and one try has failed."""
    rows = list(ladder(edge=True, laws=MORE))
    rows[1] = replace(rows[1], status="failed", quality=None, reason="it diverged")
    directory = write_study(tmp_path_factory.mktemp("ladder"), rows)
    write_coordinates(directory)
    with mock.patch.multiple(command, pictures=lambda found: (), scaling_pictures=lambda found: ()):
        assert report_command([str(directory), "--shared", "--draws", "100"]) == 0
    return directory / "report" / "report.html"


def test_every_figure_is_drawn_and_answers(page: Path, tmp_path: Path, browser: Any) -> None:
    with opened(browser, page, DRAWN, 1280, 900) as driver:
        screenshot(driver, tmp_path / "desk.png")
        for kind in ("flops", "seconds"):
            assert len(all_of(driver, f"#{kind} .point")) == CELLS
            assert len(all_of(driver, f"#{kind} .dot")) == 3 * CELLS
            assert len(all_of(driver, f"#{kind} .mark.hollow")) == CELLS / len(SIZES)
            assert len(all_of(driver, f"#{kind} .expected")) == CELLS / len(SIZES)
            drawn = all_of(driver, f"#{kind} .series")
            assert {line.get_attribute("data-name") for line in drawn} == set(MORE)
            assert len(all_of(driver, f"#{kind} .band")) == len(drawn)
            assert [line for line in drawn if line.get_attribute("stroke-dasharray")], "what was not trained is dashed"
            assert len(all_of(driver, f"#{kind} .reach")) == len(MORE)
        assert len(all_of(driver, "#held-out .point")) == CELLS / len(SIZES)
        assert "inside" in one(driver, "#held-out").text
        assert len(all_of(driver, "#multipliers .point")) == 2 * (len(MORE) - 1)
        assert len(all_of(driver, "#multipliers .event")) == 1
        assert one(driver, "#multipliers").text.count("not decided") == 2 * (len(MORE) - 1)
        slices = all_of(driver, "[id^=slice-] svg")
        assert len(slices) == 4
        assert all(len(all_of(driver, f"#slice-{i} .reach")) == len(MORE) for i in range(4))
        assert all(len(all_of(driver, f"#slice-{i} .point")) >= len(MORE) for i in range(4))
        # Tries, and what was taken; one try failed, two of three at the edge's size are far above the best.
        assert [len(all_of(driver, f"#tuning-{i} .point:not(.taken)")) for i in range(4)] == [8, 9, 9, 3]
        assert [len(all_of(driver, f"#tuning-{i} .cross")) for i in range(4)] == [1, 0, 0, 6]
        assert [len(all_of(driver, f"#tuning-{i} .taken .hollow")) for i in range(4)] == [1, 0, 0, 3]
        assert [len(all_of(driver, f"#coordinates-{i} .series")) for i in range(4)] == [5] * 4

        said = hovered(driver, all_of(driver, "#flops .point")[-1])
        assert said.startswith("moe\nloss 2.3")
        assert "training FLOPs: 1.38\u00d710\u00b9\u2075" in said
        assert "]: inside" in said
        assert "3 seeds" in said
        assert "taken: optim.learning_rate 0.004\nedge" in hovered(driver, one(driver, "#tuning-3 .taken .hit"))
        assert "grows as width^0.50" in hovered(driver, all_of(driver, "#coordinates-0 .hit")[5])
        assert "failed" in hovered(driver, one(driver, "#tuning-0 svg > .hit"))
        near = hovered(driver, one(driver, "#slice-1 .point"))
        assert "times this figure's FLOPs" in near
        # A line says what the law says there.
        driver.execute_script(
            "const b = arguments[0].getBoundingClientRect(), at = {clientX: b.x + b.width / 2, clientY: b.y};"
            "arguments[0].dispatchEvent(new PointerEvent('pointermove', at))",
            one(driver, "#seconds .reach"),
        )
        assert one(driver, "#tip").text.startswith("dense: the law\nloss ")

        # Legends toggle a family in their own figure; a point in reach of the Tab key speaks.
        for name, left in (("flops", CELLS * 2 / 3), ("slices", 8), ("tuning", None)):
            entry = button(driver, name, "dense")
            entry.send_keys(Keys.SPACE)
            assert entry.get_attribute("aria-pressed") == "false"
            where = "[id^=slice-]" if name == "slices" else "#tuning-1" if name == "tuning" else "#flops"
            assert "dense" not in {line.get_attribute("data-name") for line in all_of(driver, f"{where} .series")}
            if name == "flops":
                assert len(all_of(driver, "#flops .point")) == left
        for label in ("altup-k2", "moe"):
            button(driver, "flops", label).click()
        assert one(driver, "#flops").text.startswith("Nothing to draw")
        button(driver, "coordinates", "mlp").click()
        assert [len(all_of(driver, f"#coordinates-{i} .series")) for i in range(4)] == [4] * 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(page: Path, tmp_path: Path, browser: Any, scheme: str) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    try:
        with opened(browser, page, DRAWN, 390, 844, phone=True) as driver:
            assert driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
            # No text is cut off by a figure's edge, none is too small, none of an axis lies on another one.
            problems = driver.execute_script(
                """
                const found = [], apart = (a, b) => a.right <= b.left || a.bottom <= b.top;
                const hit = (a, b) => !apart(a, b) && !apart(b, a);
                for (const root of document.querySelectorAll('.chart svg')) {
                  const edge = root.getBoundingClientRect(), ticks = [];
                  for (const text of root.querySelectorAll('text')) {
                    const box = text.getBoundingClientRect();
                    if (box.left < edge.left - 1 || box.right > edge.right + 1) found.push('cut: ' + text.textContent);
                    if (parseFloat(getComputedStyle(text).fontSize) < 11) found.push('small: ' + text.textContent);
                    if (text.classList.contains('tick')) {
                      if (ticks.some((other) => hit(other, box))) found.push('covered: ' + text.textContent);
                      ticks.push(box);
                    }
                  }
                }
                return found;
                """
            )
            assert problems == []
            assert len(all_of(driver, "#flops .point")) == CELLS
            screenshot(driver, tmp_path / "phone.png")
            brightness = driver.execute_script(
                "return [getComputedStyle(document.body).backgroundColor, getComputedStyle(arguments[0]).fill]"
                ".map((colour) => colour.match(/\\d+/g).reduce((sum, one) => sum + +one, 0))",
                one(driver, "#flops text"),
            )
            assert (brightness[0] < brightness[1]) == (scheme == "dark")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
