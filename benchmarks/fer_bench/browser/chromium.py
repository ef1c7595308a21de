"""Pages opened in a real Chromium, driven over its DevTools pipe with nothing but the standard library."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",  # as on a phone; with them a screenshot is cut at the right
    "--remote-debugging-pipe",
)
_PATIENCE = 60.0  # seconds for a browser to start and answer on a busy machine


class BrowserError(RuntimeError):
    """The browser ended, did not answer, or JavaScript failed in it."""


def find_browser() -> str | None:
    """Path of the first Chromium that is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass(slots=True)
class Visit:
    """What a page did while it was open."""

    requests: list[str] = field(default_factory=list)  # addresses, the page's own and data: left out
    complaints: list[str] = field(default_factory=list)  # console messages, exceptions, log entries
    values: dict[str, Any] = field(default_factory=dict)  # what the asked expressions gave


class Page:
    """One open tab."""

    def __init__(self, browser: Browser, address: str, *, width: int, height: int, dark: bool) -> None:
        self._browser = browser
        self._address = address
        self._target = browser.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = browser.ask("Target.attachToTarget", targetId=self._target, flatten=True)["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        browser.events.clear()
        self.go(address)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A DevTools command of this tab."""
        return self._browser.ask(method, self._session, **parameters)

    def go(self, address: str) -> None:
        """Open `address` and wait until it is loaded."""
        seen = len(self._events("Page.loadEventFired"))
        self.ask("Page.navigate", url=address)
        self._browser.receive_until(lambda: len(self._events("Page.loadEventFired")) > seen)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for.

        Raises:
            BrowserError: the expression failed.
        """
        answer = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            facts = answer["exceptionDetails"]
            raise BrowserError(str(facts.get("exception", {}).get("description") or facts["text"]))
        return answer["result"].get("value")

    def wait_for(self, expression: str, *, seconds: float = 30.0) -> Any:
        """The value of `expression` as soon as it is true.

        Raises:
            BrowserError: it stayed false.
        """
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            if time.monotonic() > deadline:
                raise BrowserError(f"{expression} stayed {value!r} for {seconds:.0f} s; {self.visit().complaints}")
            time.sleep(0.05)
        return value

    def press(self, key: str) -> None:
        """Press and release a key, such as "Tab" or "ArrowLeft"."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        text = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
        facts = {"key": key, "windowsVirtualKeyCode": codes.get(key, 0), "code": "Space" if key == " " else key}
        self.ask("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **facts)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **facts)

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        answer = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def transferred_bytes(self) -> int:
        """Bytes that came over the network for this tab, headers included."""
        return int(sum(one["encodedDataLength"] for one in self._events("Network.loadingFinished")))

    def visit(self) -> Visit:
        """What the page asked for and complained about so far."""
        self.evaluate("0")  # what happened until now has arrived with the answer
        visit = Visit()
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            method, facts = event["method"], event["params"]
            if method == "Network.requestWillBeSent":
                url = facts["request"]["url"]
                if url != self._address and not url.startswith("data:"):
                    visit.requests.append(url)
            elif method == "Runtime.consoleAPICalled":
                visit.complaints.append(str(facts["args"]))
            elif method == "Runtime.exceptionThrown":
                visit.complaints.append(str(facts["exceptionDetails"]))
            elif method == "Log.entryAdded":
                visit.complaints.append(str(facts["entry"]["text"]))
        return visit

    def close(self) -> None:
        self._browser.ask("Target.closeTarget", targetId=self._target)

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _events(self, method: str) -> list[dict[str, Any]]:
        return [
            one["params"]
            for one in self._browser.events
            if one["method"] == method and one.get("sessionId") == self._session
        ]


class Browser:
    """One Chromium with a profile of its own.

    Args:
        path: its program, see `find_browser`.
        flags: besides the usual ones.
    """

    def __init__(self, path: str, *, flags: Sequence[str] = ()) -> None:
        self.events: list[dict[str, Any]] = []  # of all tabs, since the last one was opened
        self._profile = tempfile.mkdtemp(prefix="fer-edge-browser-")
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4.
        script = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, path, *_FLAGS, *flags, f"--user-data-dir={self._profile}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._last = 0

    def open(self, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """A tab with `address`, loaded, in a window of `width` x `height` pixels."""
        return Page(self, address, width=width, height=height, dark=dark)

    def visit(self, page: Path, *, width: int, dark: bool = False, expressions: dict[str, str] | None = None) -> Visit:
        """Open the file `page` and evaluate JavaScript expressions in it."""
        with self.open(page.resolve().as_uri(), width=width, dark=dark) as tab:
            values = {name: tab.evaluate(expression) for name, expression in (expressions or {}).items()}
            visit = tab.visit()
        visit.values = values
        return visit

    def close(self) -> None:
        os.close(self._write)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        shutil.rmtree(self._profile, ignore_errors=True)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """A DevTools command and its answer.

        Raises:
            BrowserError: the browser refuses it, or is gone.
        """
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        content = json.dumps(message).encode() + b"\0"
        while content:  # a pipe takes 64 KB at a time
            content = content[os.write(self._write, content) :]
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise BrowserError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def receive_until(self, is_reached: Callable[[], bool]) -> None:
        """Take events until `is_reached`."""
        while not is_reached():
            self._receive()

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            block = os.read(self._read, 1 << 16) if ready else b""
            if not block:
                raise BrowserError(f"the browser did not answer in {_PATIENCE:.0f} s, or has ended")
            self._buffer += block
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message
