"""A headless Chromium for tests of HTML pages, one for the session: it takes the size of a desk or of a phone.

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

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver")

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


def start_browser(profile: Path) -> Any:
    """The driver of a browser whose profile is a directory; who starts it ends it with `quit()`."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (*QUIET, f"--user-data-dir={profile}", "--window-size=1280,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    os.environ["SE_OFFLINE"] = "true"  # selenium looks for no driver elsewhere
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


@contextmanager
def opened(driver: Any, page: Path, drawn: str, width: int, height: int, phone: bool = False) -> Iterator[Any]:
    """The page, once the selector `drawn` finds something; at the end, the console is empty and nothing was fetched."""
    size = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
    driver.get_log("browser")
    driver.get(page.as_uri())
    WebDriverWait(driver, 60).until(lambda d: d.find_elements(By.CSS_SELECTOR, drawn))
    yield driver
    assert driver.get_log("browser") == []
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0


def all_of(driver: Any, selector: str) -> list[Any]:
    """Elements, in the page's order."""
    return driver.find_elements(By.CSS_SELECTOR, selector)


def one(driver: Any, selector: str) -> Any:
    """The first element."""
    return driver.find_element(By.CSS_SELECTOR, selector)


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


def tap(driver: Any, x: float, y: float) -> None:
    """A finger, down and up."""
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
