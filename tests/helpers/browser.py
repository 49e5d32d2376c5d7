"""Headless Chromium for tests that open pages, which `infra/test` installs; without one such tests are skipped."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_SWITCHES = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")


@contextmanager
def chromium(*switches: str) -> Iterator[Any]:
    """A browser, until the block ends."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
        if found is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("there is no Chromium: sh infra/test installs it")
        browser = playwright.chromium.launch(executable_path=found, args=[*_SWITCHES, *switches])
        try:
            yield browser
        finally:
            browser.close()


def shot(page: Any, name: str, **options: Any) -> None:
    """A screenshot, in the folder that OPDSCOPE_SCREENSHOTS names, if any."""
    folder = os.environ.get("OPDSCOPE_SCREENSHOTS")
    if folder:
        page.wait_for_timeout(1500)  # charts and tables fade in
        page.screenshot(path=str(Path(folder) / f"{name}.png"), **options)
