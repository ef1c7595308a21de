"""A page opened in a real Chromium, driven over its DevTools pipe with nothing but the standard library."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
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
    "--remote-debugging-pipe",
)
_PATIENCE = 60.0  # seconds for a browser to start and answer on a busy machine


def find_browser() -> str | None:
    """Path of the first Chromium that is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@dataclass(slots=True)
class Visit:
    """What a page did while it was open."""

    requests: list[str] = field(default_factory=list)  # addresses, the page's own and data: left out
    complaints: list[str] = field(default_factory=list)  # console messages, exceptions, log entries
    values: dict[str, Any] = field(default_factory=dict)  # what the asked expressions gave


class Browser:
    """One Chromium with a profile of its own."""

    def __init__(self, path: str) -> None:
        self._profile = tempfile.mkdtemp(prefix="fer-edge-browser-")
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # Chromium reads commands from descriptor 3 and answers on 4.
        script = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, path, *_FLAGS, f"--user-data-dir={self._profile}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._events: list[dict[str, Any]] = []
        self._last = 0

    def visit(self, page: Path, *, width: int, dark: bool = False, expressions: dict[str, str] | None = None) -> Visit:
        """Open `page` in a window of `width` pixels and evaluate JavaScript expressions in it."""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self._ask(f"{domain}.enable", session)
        self._ask(
            "Emulation.setDeviceMetricsOverride", session, width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", session, features=[scheme])
        self._events.clear()
        address = page.resolve().as_uri()
        self._ask("Page.navigate", session, url=address)
        while not any(one["method"] == "Page.loadEventFired" for one in self._events):
            self._receive()
        visit = Visit()
        for name, expression in (expressions or {}).items():
            answer = self._ask("Runtime.evaluate", session, expression=expression, returnByValue=True)
            visit.values[name] = answer["result"].get("value")
        for event in self._events:
            method, facts = event["method"], event["params"]
            if method == "Network.requestWillBeSent":
                url = facts["request"]["url"]
                if url != address and not url.startswith("data:"):
                    visit.requests.append(url)
            elif method == "Runtime.consoleAPICalled":
                visit.complaints.append(str(facts["args"]))
            elif method == "Runtime.exceptionThrown":
                visit.complaints.append(str(facts["exceptionDetails"]))
            elif method == "Log.entryAdded":
                visit.complaints.append(str(facts["entry"]["text"]))
        self._ask("Target.closeTarget", targetId=target)
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

    def _ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            block = os.read(self._read, 1 << 16) if ready else b""
            if not block:
                raise RuntimeError(f"the browser did not answer in {_PATIENCE:.0f} s, or has ended")
            self._buffer += block
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self._events.append(message)
        return message
