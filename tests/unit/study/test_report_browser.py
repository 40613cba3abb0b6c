"""A study's page in a headless Chromium, at a desk and on a phone: it loads without a word on the console, and answers.

Skipped where there is no Chromium with its driver, or no selenium; `.ci/run` installs them where it may.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from altup_moe.study.report import report_command
from tests.studies import study, write_study
from tests.unit.study.test_report import hostile

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver")

# Nothing that a browser does on its own shall reach for the network.
QUIET = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-default-apps",
]


@contextmanager
def opened(page: Path, profile: Path, width: int, height: int, phone: bool = False) -> Iterator[Any]:
    """The page in a browser of its own; at the end, the console is empty and nothing was fetched."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (*QUIET, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
        options.add_argument(argument)
    if phone:
        metrics = {"width": width, "height": height, "pixelRatio": 2, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    os.environ["SE_OFFLINE"] = "true"  # selenium looks for no driver elsewhere
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.get(page.as_uri())
        WebDriverWait(driver, 60).until(lambda d: d.find_elements(By.CSS_SELECTOR, "#front svg .point"))
        yield driver
        assert driver.get_log("browser") == []
        assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    finally:
        driver.quit()


def all_of(driver: Any, selector: str) -> list[Any]:
    """Elements, in the page's order."""
    return driver.find_elements(By.CSS_SELECTOR, selector)


def tip(driver: Any) -> str:
    """What the tooltip says; "" while it is hidden."""
    return driver.find_element(By.ID, "tip").text


def centre(driver: Any, element: Any) -> None:
    """Scroll there; two frames later it is done."""
    driver.execute_async_script(
        "arguments[0].scrollIntoView({block: 'center'});"
        "requestAnimationFrame(() => requestAnimationFrame(arguments[1]))",
        element,
    )


def hovered(driver: Any, element: Any) -> str:
    """What the tooltip says with the mouse over an element; a busy machine may miss that the mouse came."""

    def said(_: Any) -> str:
        # From a corner, so that what lay under the mouse while the page scrolled is left first.
        actions = ActionChains(driver)
        actions.w3c_actions.pointer_action.move_to_location(1, 1)
        actions.move_to_element(element).perform()
        return tip(driver)

    centre(driver, element)
    return str(WebDriverWait(driver, 20).until(said))


def button(driver: Any, figure: str, label: str) -> Any:
    """A legend's entry."""
    return next(b for b in all_of(driver, f"#{figure}-legend button") if b.text == label)


def screenshot(driver: Any, path: Path) -> None:
    """Of the window; not all of one colour."""
    from PIL import Image

    assert driver.save_screenshot(str(path))
    with Image.open(path) as image:
        assert len(set(image.convert("RGB").resize((64, 64)).get_flattened_data())) > 20


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the made-up study."""
    directory = write_study(tmp_path_factory.mktemp("study"), study())
    assert report_command([str(directory), "--bootstrap", "100"]) == 0
    return directory / "report" / "report.html"


def test_at_a_desk_values_hover_and_legends_toggle(page: Path, tmp_path: Path) -> None:
    with opened(page, tmp_path / "profile", 1280, 900) as driver:
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
        assert len(all_of(driver, "#front .ring")) == 8
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
        area = driver.find_element(By.CSS_SELECTOR, "#curves .hit")
        assert "tokens\nloss " in hovered(driver, area)
        Select(driver.find_element(By.ID, "curves-y")).select_by_visible_text("training")
        assert len(all_of(driver, "#curves .series")) == 9
        Select(driver.find_element(By.ID, "load-row")).select_by_visible_text("altup-moe-l-e16, seed 2")
        cells = all_of(driver, "#load .cell")
        assert len(cells) == 48
        said = hovered(driver, cells[17])
        assert said.startswith("layer 3, expert 1\n")
        assert "times the mean" in said


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Path, tmp_path: Path) -> None:
    with opened(page, tmp_path / "profile", 390, 844, phone=True) as driver:
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


def tap(driver: Any, x: float, y: float) -> None:
    """A finger, down and up."""
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_scripts_in_a_studys_text_do_not_run(tmp_path: Path) -> None:
    directory = write_study(tmp_path / "study", hostile())
    assert report_command([str(directory), "--bootstrap", "100"]) == 0
    with opened(directory / "report" / "report.html", tmp_path / "profile", 390, 844, phone=True) as driver:
        assert len(all_of(driver, "script")) == 2
        assert not all_of(driver, "img")
        assert "<script>alert(1)</script>" in driver.find_element(By.TAG_NAME, "h1").text
        assert driver.execute_script("return document.documentElement.scrollWidth") == 390
