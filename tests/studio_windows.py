"""A studio, a browser, and windows that it is opened in: a plugin of the tests that want one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from browser import find_browser
from notan.prediction.predictor import Predictor
from notan.studio.shelf import GivenModel
from studio_runs import Served, accept_masks, little_model, red_finder, serving, write_images
from studio_tabs import DESK, Tab

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, BrowserContext

COUNT = 16
ACCEPTED = (0, 1, 2, 3, 5, 14, 15)
"""Before anybody looks; 15 is drawn at random, and 6 and 8 are too."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("studio")
    data = write_images(folder / "cells", COUNT, masks=2)
    base = little_model(folder)
    # the finder of red with the card of a model that can be taught
    predictor = Predictor.load(base, device="cpu")
    finder = red_finder(predictor.card)
    given = GivenModel(base, load=lambda path: Predictor.load(path, device="cpu"), device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTAN_CACHE", str(folder / "cache"))
        patch.setattr("notan.studio.predictions.START_SECONDS", 0.0)
        with serving(data, folder / "cells-corrections", finder, given=given) as studio:
            accept_masks(studio.store, ACCEPTED)
            yield studio


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_browser(), args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def tab(chromium: Browser, served: Served) -> Iterator[Callable[..., Tab]]:
    """Open the studio in a window; at the end nothing was wrong, and nobody else was asked."""
    contexts: list[BrowserContext] = []
    said: list[str] = []
    hosts: set[str] = set()

    def open_tab(ratio: float = 1.0, **settings: Any) -> Tab:
        context = chromium.new_context(
            device_scale_factor=ratio,
            **{"viewport": DESK, **settings},
        )
        contexts.append(context)
        context.set_extra_http_headers({"authorization": f"Bearer {served.token}"})
        context.set_default_timeout(15_000)
        page = context.new_page()
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
        page.goto(served.url)
        page.wait_for_selector("#grid li")
        return Tab(page, served)

    yield open_tab
    for context in contexts:
        context.close()
    faults = [line for line in said if not re.search("507|422", line)]  # which tests provoke
    assert faults == []
    assert hosts == {f"127.0.0.1:{served.port}"}
