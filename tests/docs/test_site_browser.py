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
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.browser import needs_browser, one
from tests.docs.commands import ROOT

pytest.importorskip("mkdocs")
pytestmark = [pytest.mark.slow, needs_browser]
WIDTHS = (1280, 390)
KINDS = ["index.html", "concepts/wide_stream.html", "reference/configuration.html", "reference/python_api.html"]
KINDS += ["results/studies.html"]
"""Pages with pictures, wide tables, signatures."""
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
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(directory)],
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


def sized(driver: Any, width: int) -> None:
    """The browser takes the size of a desk or of a phone, and forgets what it said before."""
    phone = width < 500
    size = {"width": width, "height": 844, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
    driver.get_log("browser")


def problems_of(pages: list[str], address: str, width: int, browser: Any) -> list[str]:
    """What is wrong with pages at a width: too wide, fetched from elsewhere, said on the console."""
    problems = []
    sized(browser, width)
    for page in pages:
        browser.get(address + page)
        inner, wide = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
        if inner != width or wide > inner:
            problems.append(f"{page}: {wide} px wide of {inner}")
        fetched = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        problems += [f"{page} fetches {url}" for url in fetched if not url.startswith((address, "data:", "blob:"))]
        problems += [f"{page}: {entry['message']}" for entry in browser.get_log("browser")]
        if SHOTS:
            browser.save_screenshot(str(Path(SHOTS) / f"{width}_{page.replace('/', '_')}.png"))
    return problems


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_of_every_kind(site: tuple[str, Path], width: int, browser: Any) -> None:
    assert not problems_of(KINDS, site[0], width, browser)


@pytest.mark.long
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page(site: tuple[str, Path], width: int, browser: Any) -> None:
    address, directory = site
    pages = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*.html"))
    assert not problems_of(pages, address, width, browser)


def test_the_search_finds_a_key(site: tuple[str, Path], browser: Any) -> None:
    pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.support.ui import WebDriverWait

    address, _ = site
    sized(browser, 1280)
    browser.get(address + "index.html")
    browser.execute_script("document.getElementById('__search').click()")
    one(browser, "input.md-search__input").send_keys("capacity_factor")
    links = WebDriverWait(browser, 60).until(
        lambda d: [a.get_attribute("href") for a in d.find_elements("css selector", ".md-search-result__link")]
    )
    assert any("configuration" in link for link in links)
    assert browser.get_log("browser") == []


def test_no_page_names_another_hosts_script(site: tuple[str, Path]) -> None:
    _, directory = site
    found = [
        path.name
        for path in directory.rglob("*.html")
        if 'src="http' in path.read_text(encoding="utf-8") or 'rel="stylesheet" href="http' in path.read_text("utf-8")
    ]
    assert not found
