"""Pages in the installed Chromium, driven by Playwright."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Error, Page, Request, sync_playwright

from fer_bench.browser.measure import CHROMIUM_FLAGS, BrowserMissingError, find_chromium

_TIMEOUT_MS = 60_000  # for a browser on a busy machine
# V8 compiles ONNX Runtime's WebAssembly a second time, for a speed that no test needs, and for each process anew: pages
# of one site and profile share theirs.
FLAGS = (*CHROMIUM_FLAGS, "--js-flags=--liftoff-only", "--process-per-site")


@dataclass(slots=True)
class Visit:
    """One open page with what it did so far."""

    page: Page
    requests: list[str] = field(default_factory=list)  # addresses, without the page's own and data: URLs
    complaints: list[str] = field(default_factory=list)  # console messages and exceptions

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; waits for a promise."""
        return self.page.evaluate(expression)

    def wait_for(self, expression: str) -> Any:
        """The value of `expression` once it is true; fails after a minute."""
        # Playwright's wait_for_function evaluates inside the page, which a Content Security Policy forbids.
        deadline = time.monotonic() + _TIMEOUT_MS / 1000
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"{expression} stayed {value!r}; {self.complaints}"
            self.page.wait_for_timeout(50)
        return value

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)


@contextmanager
def launched(*flags: str) -> Iterator[Browser]:
    """A headless Chromium; skips the test where none is installed."""
    try:
        path = find_chromium()
    except BrowserMissingError as error:
        pytest.skip(str(error))
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=[*FLAGS, *flags]) as browser,
    ):
        yield browser


def new_profile(browser: Browser) -> BrowserContext:
    """A profile without any history, which may use the camera."""
    return browser.new_context(permissions=["camera"])


@contextmanager
def visiting(
    place: Browser | BrowserContext, address: str, *, width: int = 1280, dark: bool = False
) -> Iterator[Visit]:
    """A page at `address`: in a profile of its own, or in one where others were open before.

    A profile that knows the page loads it in less than half the time: its files and the compiled WebAssembly are there.
    """
    with ExitStack() as stack:
        profile = stack.enter_context(new_profile(place)) if isinstance(place, Browser) else place
        page = stack.enter_context(profile.new_page())
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme="dark" if dark else "light")
        visit = Visit(page)

        def note_request(request: Request) -> None:
            if request.url != address and not request.url.startswith("data:"):
                visit.requests.append(request.url)

        def note_message(message: ConsoleMessage) -> None:
            visit.complaints.append(message.text)

        def note_error(error: Error) -> None:
            visit.complaints.append(str(error))

        page.on("request", note_request)
        page.on("console", note_message)
        page.on("pageerror", note_error)
        page.goto(address, timeout=_TIMEOUT_MS)
        yield visit
