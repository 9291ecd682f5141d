"""A real browser without a screen, for tests of pages: headless Chromium."""

from __future__ import annotations

import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
_TIMEOUT_S = 120
_LOOK = """<script>
addEventListener("load", () => {
  const page = document.documentElement;
  page.dataset.seen = [...document.images].map(image => image.naturalWidth).join(" ");
  page.dataset.wide = page.scrollWidth;
});
</script>"""
"""Added to a copy of a page: tells the width of each picture, 0 where it could not be loaded, and that of the page."""


def chromium() -> str:
    """Its path; without one, the test is skipped."""
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    pytest.skip(f"no browser is installed to look at the page with: none of {', '.join(_NAMES)}")


def look_at(page: Path, scratch: Path, *, width: int, dark: bool = False) -> tuple[str, list[int], int]:
    """The page's title, the width of each of its pictures (0: not shown), and of the page itself in this window.

    scratch: an empty folder for the browser.
    """
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))  # it forbids scripts
    copy = page.with_name(f"looked-at-{page.name}")
    copy.write_text(text.replace(' loading="lazy"', "").replace("</body>", f"{_LOOK}</body>"), encoding="utf-8")
    try:
        dom = _run(scratch, [f"--window-size={width},900", "--dump-dom", copy.as_uri()], dark)
    finally:
        copy.unlink()
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    seen, wide = re.search(r'data-seen="([\d ]*)"', dom), re.search(r'data-wide="(\d+)"', dom)
    assert title and seen and wide, f"the page was not rendered: {dom[:500]}"
    return unescape(title[1]), [int(number) for number in seen[1].split()], int(wide[1])


def screenshot(page: Path, picture: Path, scratch: Path, *, width: int, height: int, dark: bool = False) -> None:
    """Writes what the page looks like, as a PNG."""
    _run(scratch, [f"--window-size={width},{height}", f"--screenshot={picture}", page.as_uri()], dark)


def _run(scratch: Path, arguments: list[str], dark: bool) -> str:
    flags = [*_FLAGS, f"--user-data-dir={scratch}", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    done = subprocess.run(
        [chromium(), *flags, *arguments], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
