"""A browser without a network, and what is done with it."""

import os
import shutil
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def chromium():
    """Headless Chromium, from the system: nothing is downloaded for the tests."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium (Debian's package is called chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page that fails the test if a script fails or opens a dialog; ``page.requests`` are those it made."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1100})
    page = context.new_page()
    page.requests, faults = [], []
    page.on("request", lambda request: page.requests.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(f"a dialog: {dialog.message}"), dialog.dismiss()))
    yield page
    context.close()
    assert not faults


@pytest.fixture
def offline(page):
    """Opens a self-contained page from disk without a network, and looks that it asks for nothing."""
    page.context.set_offline(True)

    def open_page(path):
        page.goto(path.resolve().as_uri())
        page.wait_for_selector(".view[data-ready]")
        return page

    yield open_page
    assert [url for url in page.requests if not url.startswith(("data:", "file:"))] == []
    assert sum(url.startswith("file:") for url in page.requests) == 1


@pytest.fixture
def keep(page):
    """Keeps a screenshot, where the environment says that somebody wants to look at them."""

    def keep_as(name):
        if folder := os.environ.get("AUGFPN_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    return keep_as
