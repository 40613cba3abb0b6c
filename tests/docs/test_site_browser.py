"""The built site in a headless Chromium, at a desk and on a phone: nothing overflows, nothing comes from elsewhere.

Left out where there is no Chromium with its driver, no selenium, or no mkdocs (`make docs` installs it).
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.docs.commands import ROOT
from tests.unit.study.test_report_browser import BROWSER, DRIVER, QUIET, webdriver

pytest.importorskip("mkdocs")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver")]
WIDTHS = (1280, 390)
SHOTS = os.environ.get("SITE_SCREENSHOTS")
"""Directory where pictures of the pages are kept, if one is named."""


class _Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(address of the built site, its directory)."""
    directory = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(directory)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Silent, directory=str(directory)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", directory
    server.shutdown()
    server.server_close()


@contextmanager
def browser(profile: Path, width: int) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in (*QUIET, f"--user-data-dir={profile}", "--window-size=1280,900"):
        options.add_argument(argument)
    if width < 500:
        metrics = {"width": width, "height": 844, "pixelRatio": 2, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    os.environ["SE_OFFLINE"] = "true"
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page(site: tuple[str, Path], width: int, tmp_path: Path) -> None:
    address, directory = site
    problems = []
    with browser(tmp_path / "profile", width) as driver:
        for page in sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*.html")):
            driver.get(address + page)
            inner, wide = driver.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
            if wide > inner:
                problems.append(f"{page}: {wide} px wide of {inner}")
            fetched = driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
            problems += [f"{page} fetches {url}" for url in fetched if not url.startswith((address, "data:", "blob:"))]
            problems += [f"{page}: {entry['message']}" for entry in driver.get_log("browser")]
            if SHOTS:
                driver.save_screenshot(str(Path(SHOTS) / f"{width}_{page.replace('/', '_')}.png"))
    assert not problems, "\n".join(problems)


def test_the_search_finds_a_key(site: tuple[str, Path], tmp_path: Path) -> None:
    address, _ = site
    with browser(tmp_path / "profile", 1280) as driver:
        driver.get(address + "index.html")
        box = driver.find_element("css selector", "input.md-search__input")
        driver.execute_script("document.getElementById('__search').click()")
        box.send_keys("capacity_factor")
        wait = webdriver.support.wait.WebDriverWait(driver, 60)
        links = wait.until(lambda d: d.find_elements("css selector", ".md-search-result__link"))
        assert any("configuration" in link.get_attribute("href") for link in links)
        assert driver.get_log("browser") == []


def test_no_page_names_another_hosts_script(site: tuple[str, Path]) -> None:
    _, directory = site
    found = [
        path.name
        for path in directory.rglob("*.html")
        if 'src="http' in path.read_text(encoding="utf-8") or 'rel="stylesheet" href="http' in path.read_text("utf-8")
    ]
    assert not found
