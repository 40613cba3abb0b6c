"""`python -m docs.generate.run_page RUN`: write the page of a run, and take the picture of it that the guide shows.

    altup-moe launch torchrun --ranks-per-node 2 -- altup-moe train quickstart --log.run_dir runs/quickstart
    python -m docs.generate.run_page runs/quickstart

Needs Chromium with its driver, and selenium.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from altup_moe.commands.show import ShowOptions, show
from docs.generate.pages import DOCS
from tests.browser import one, opened, start_browser

PICTURE = DOCS / "guides" / "run_page.png"
WIDTH, MOST_BYTES = 1000, 100_000
PARTS = (("h1", 0), ("#chart-valid_loss", 1), ("#routing", 0), ("#routing-time", 1))
"""The picture is two cuts of the page: from the top (0) or bottom (1) of an element to that of another."""


def main(args: list[str]) -> int:
    """Write both. Returns the exit code."""
    from PIL import Image

    run = Path(args[0]).absolute()
    show(ShowOptions((run,)))
    with tempfile.TemporaryDirectory() as directory:
        driver = start_browser(Path(directory) / "profile")
        try:
            with opened(driver, run / "report.html", "#chart-lm_loss .series", WIDTH, 6000):
                ends = [
                    one(driver, name).rect["y"] + bottom * one(driver, name).rect["height"] for name, bottom in PARTS
                ]
                driver.save_screenshot(f"{directory}/page.png")
        finally:
            driver.quit()
        with Image.open(f"{directory}/page.png") as page:
            cuts = [(max(0, int(ends[i]) - 16), int(ends[i + 1]) + 16) for i in (0, 2)]
            joined = Image.new("RGB", (WIDTH, sum(low - high for high, low in cuts)), "white")
            top = 0
            for high, low in cuts:
                joined.paste(page.convert("RGB").crop((0, high, WIDTH, low)), (0, top))
                top += low - high
        joined.quantize(128).save(PICTURE, optimize=True)
    size = PICTURE.stat().st_size
    print(f"wrote {PICTURE.relative_to(DOCS.parent)}: {joined.size[0]} x {joined.size[1]}, {size:,} bytes")
    return int(size > MOST_BYTES)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
