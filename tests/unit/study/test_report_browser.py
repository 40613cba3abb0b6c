"""A study's page in a headless Chromium, at a desk and on a phone: nothing on the console, and it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.browser import all_of, button, centre, hovered, needs_browser, one, opened, screenshot, tap, tip
from tests.studies import study, write_study
from tests.unit.study.test_report import hostile, report_command

pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

pytestmark = needs_browser
DRAWN = "#front svg .point"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the made-up study."""
    directory = write_study(tmp_path_factory.mktemp("study"), study())
    assert report_command([str(directory)]) == 0
    return directory / "report" / "report.html"


def test_at_a_desk_values_hover_and_legends_toggle(page: Path, tmp_path: Path, browser: Any) -> None:
    with opened(browser, page, DRAWN, 1280, 900) as driver:
        assert len(all_of(driver, "#front .point")) == 10
        assert len(all_of(driver, "#curves .series")) == 10
        screenshot(driver, tmp_path / "desk.png")

        # Hovering over a point: its name and values; elsewhere: nothing.
        point = all_of(driver, "#front .point")[5]
        said = hovered(driver, point)
        assert said.startswith("altup-m-k2\naltup\nheld-out loss (nats a token): 3.2")
        assert "train step (ms): 117" in said
        assert "3 seeds" in said
        assert "speed at equal quality (train step): 1." in said
        ActionChains(driver).move_to_element(driver.find_element(By.TAG_NAME, "h2")).perform()
        WebDriverWait(driver, 10).until(lambda d: not tip(d))

        # The legend, by mouse and by keyboard.
        families = button(driver, "front", "dense")
        families.click()
        assert families.get_attribute("aria-pressed") == "false"
        assert len(all_of(driver, "#front .point")) == 6
        families.send_keys(Keys.SPACE)
        assert families.get_attribute("aria-pressed") == "true"
        assert len(all_of(driver, "#front .point")) == 10
        assert all_of(driver, "#front path.front")
        assert len(all_of(driver, "#front .ring")) == 4
        button(driver, "front", "Pareto front").send_keys(Keys.ENTER)
        assert not all_of(driver, "#front path.front, #front .ring")
        button(driver, "curves", "dense-s").click()
        shown = [line.get_attribute("data-name") for line in all_of(driver, "#curves .series")]
        assert "dense-s" not in shown
        assert len(shown) == 9
        for entry in all_of(driver, "#front-legend button"):
            if entry.get_attribute("aria-pressed") == "true":
                entry.click()
        assert driver.find_element(By.ID, "front").text.startswith("Nothing to draw")
        button(driver, "front", "moe").click()

        # A point in reach of the Tab key says the same as under the mouse.
        button(driver, "front", "Pareto front").send_keys(Keys.TAB)
        WebDriverWait(driver, 10).until(lambda d: tip(d).startswith("moe-m-e8\nmoe\n"))

        # The axes: bits per byte, decoding, which this family has not, and parameters.
        Select(driver.find_element(By.ID, "front-x")).select_by_visible_text("decode (ms a token)")
        assert driver.find_element(By.ID, "front").text.startswith("Nothing to draw")
        button(driver, "front", "altup").click()
        Select(driver.find_element(By.ID, "front-y")).select_by_visible_text("held-out bits per byte")
        assert "held-out bits per byte" in driver.find_element(By.ID, "front").text
        Select(driver.find_element(By.ID, "front-x")).select_by_visible_text("active parameters")
        assert len(all_of(driver, "#front .point")) == 4

        # Hovering over the curves, and the experts.
        area = one(driver, "#curves .hit")
        assert "tokens\nloss " in hovered(driver, area)
        # The arrow keys go from curve to curve, and along one.
        area.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
        first = tip(driver).splitlines()
        area.send_keys(Keys.ARROW_LEFT)
        assert tip(driver).splitlines()[0] == first[0]
        assert tip(driver).splitlines()[1] != first[1]
        Select(driver.find_element(By.ID, "curves-y")).select_by_visible_text("training")
        assert len(all_of(driver, "#curves .series")) == 9
        Select(driver.find_element(By.ID, "load-row")).select_by_visible_text("altup-moe-l-e16, seed 2")
        cells = all_of(driver, "#load .cell")
        assert len(cells) == 48
        said = hovered(driver, cells[17])
        assert said.startswith("layer 3, expert 1\n")
        assert "times the mean" in said


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Path, tmp_path: Path, browser: Any) -> None:
    with opened(browser, page, DRAWN, 390, 844, phone=True) as driver:
        assert driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [390, 390]
        screenshot(driver, tmp_path / "phone.png")
        scrolls = [box for box in all_of(driver, ".box") if int(box.get_property("scrollWidth")) > box.size["width"]]
        assert scrolls, "the table of models is wider than a phone and scrolls in its own box"
        sizes = driver.execute_script(
            "return [...document.querySelectorAll('.chart text')].map(t => parseFloat(getComputedStyle(t).fontSize))"
        )
        assert min(sizes) >= 11
        # A tapped point keeps its values on the screen until something else is tapped.
        point = all_of(driver, "#front .point")[3]
        centre(driver, point)
        box = driver.execute_script(
            "const b = arguments[0].querySelector('.hit').getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2]",
            point,
        )
        tap(driver, *box)
        WebDriverWait(driver, 10).until(lambda d: tip(d))
        assert tip(driver).startswith("dense-xl\n")
        left, right = driver.execute_script(
            "const b = document.getElementById('tip').getBoundingClientRect(); return [b.left, b.right]"
        )
        assert left >= 0
        assert right <= 390
        screenshot(driver, tmp_path / "tapped.png")
        tap(driver, 5, 5)
        WebDriverWait(driver, 10).until(lambda d: not tip(d))


def test_scripts_in_a_studys_text_do_not_run(tmp_path: Path, browser: Any) -> None:
    directory = write_study(tmp_path / "study", hostile())
    assert report_command([str(directory)]) == 0
    with opened(browser, directory / "report" / "report.html", DRAWN, 390, 844, phone=True) as driver:
        assert len(all_of(driver, "script")) == 2
        assert not all_of(driver, "img")
        assert "<script>alert(1)</script>" in driver.find_element(By.TAG_NAME, "h1").text
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
