"""Dagster's UI in headless Chromium, in the words of a person: open, press, choose partitions, read a value.

Owns where things are in the UI of Dagster 1.13, and waiting for them; tests say what a person does and sees. Needs
Debian's `chromium`, or another one on the PATH.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, sync_playwright
from playwright.sync_api import TimeoutError as NotSeen

from tests.dev_server import PATIENCE_S, DevServer

REQUIRED = "FOUNDRY_TEST_BROWSER"
LOOK_MS = 2_000.0
"""How long one look waits, before it is asked whether the server still lives."""


def find_chromium() -> str:
    """The browser's path. Skips the test where there is none; fails it where FOUNDRY_TEST_BROWSER=required."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None and os.environ.get(REQUIRED) == "required":
        pytest.fail(f"{REQUIRED}=required, and none of {', '.join(names)} is on the PATH")
    if found is None:
        pytest.skip("no Chromium on the PATH; on Debian: apt-get install chromium")
    return found


@contextmanager
def open_page() -> Iterator[Page]:
    """A page of a browser of its own, without a profile."""
    path = find_chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--disable-gpu", "--disable-quic"])
        try:
            yield browser.new_page(viewport={"width": 1500, "height": 1000})
        finally:
            browser.close()


class Ui:
    """Dagster's UI of a server. Whatever is waited for comes, or the error has the page's text and the server's log."""

    def __init__(self, page: Page, server: DevServer) -> None:
        self.page = page
        self.server = server
        self.strangers: list[str] = []
        """Addresses elsewhere that the UI asked for something."""
        self.page.on("request", lambda request: self._note(request.url))

    def open(self, path: str) -> None:
        """Go to a path of the UI."""
        self.page.goto(self.server.url + path)

    def open_asset(self, *key: str, view: str = "overview") -> None:
        """Go to an asset's page."""
        self.open(f"/assets/{'/'.join(key)}?view={view}")

    def see(self, what: str | re.Pattern[str] | Locator) -> Locator:
        """Wait until a text, or an element, can be seen; the first one, where there are several."""
        place = (what if isinstance(what, Locator) else self.page.get_by_text(what)).first
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                place.wait_for(timeout=LOOK_MS)
                return place
            except NotSeen:
                self.server.check()
                if time.monotonic() > deadline:
                    raise AssertionError(f"not seen: {what}\nthe page: {self.text()}\n{self.server.tail()}") from None

    def text(self) -> str:
        """All that can be read on the page."""
        return self.page.locator("body").inner_text()

    def button(self, words: str) -> Locator:
        """The last button of exactly these words: that of a dialog, where one is open."""
        return self.page.locator("button").filter(has_text=re.compile(f"^{re.escape(words)}$")).last

    def press(self, words: str) -> None:
        """Click on a button, as soon as it can be."""
        button = self.see(self.button(words))
        self._wait(f"button {words!r} can be pressed", button.is_enabled)
        button.click()

    def choose(self, words: str) -> None:
        """Click on a line of the menu at the right of the page's head, which opens at a button without words."""
        button = self.see(self.page.locator("button:has([aria-label=arrow_drop_down], [aria-label=expand_more])"))
        line = self.page.get_by_text(words, exact=True)

        def is_open() -> bool:
            """The menu closes by itself where the page is still being filled."""
            if not line.is_visible():
                button.click()
            return line.is_visible()

        self._wait(f"{words!r} is in the menu", is_open)
        line.click()

    def follow_launch(self) -> str:
        """From the note that a run or backfill was launched to its page; gives the page's path."""
        link = self.see(self.page.locator("a[href^='/runs/']").filter(has_text=re.compile("^View$")))
        path = link.get_attribute("href")
        assert path is not None
        self.open(path)
        return path

    def see_run_succeed(self) -> None:
        """On a run's page, until it has succeeded; raises where it ends otherwise."""
        end = self.see(re.compile("^(Success|Failure|Canceled)$"))
        assert end.inner_text() == "Success", self.text()

    def see_backfill_succeed(self) -> None:
        """On a backfill's page, until all of it has succeeded."""
        self.see("100% completed")
        self.see(self.page.get_by_text("Succeeded", exact=True).nth(1))  # the other one is a column's head

    def materialize(self, *key: str) -> None:
        """Materialize an asset without partitions, and see it succeed."""
        self.open_asset(*key)
        self.press("Materialize")
        self.follow_launch()
        self.see_run_succeed()

    def value(self, name: str) -> str:
        """The text of a line of the metadata table on the page."""
        line = self.page.locator("tr").filter(has=self.page.get_by_text(name, exact=True))
        return [text for text in self.see(line).locator("xpath=./td").all_inner_texts() if text][-1]

    def _wait(self, what: str, look: Callable[[], bool]) -> None:
        self.server.wait_until(what, look)

    def _note(self, url: str) -> None:
        if not url.startswith((self.server.url, self.server.url.replace("http", "ws", 1), "data:", "blob:", "file:")):
            self.strangers.append(url)


class Pixels:
    """A picture as the browser shows it, asked by the coordinates of the picture it was made from."""

    def __init__(self, image: Locator, width: int) -> None:
        image.scroll_into_view_if_needed()
        image.evaluate("image => image.decode()")
        self._shown = Image.open(io.BytesIO(image.screenshot())).convert("RGB")
        self._scale = self._shown.width / width

    def at(self, x: float, y: float) -> tuple[int, ...]:
        """The colour (red, green, blue) at a place, in pixels of the original."""
        colour = self._shown.getpixel((round(x * self._scale), round(y * self._scale)))
        assert isinstance(colour, tuple)
        return colour


def file_url(path: Path) -> str:
    """For `page.goto`."""
    return path.absolute().as_uri()
