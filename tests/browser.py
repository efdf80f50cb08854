"""A headless Chromium, driven through its DevTools protocol."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
_QUIET = ("--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0")
_DEADLINE_S = 60


class Page:
    """One page; `requests` are the addresses that it has asked for."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection, self._numbers = connection, itertools.count(1)
        self.requests: list[str] = []
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Until the expression is true in the page."""
        deadline_s = time.monotonic() + _DEADLINE_S
        while not self.evaluate(expression):
            assert time.monotonic() < deadline_s, f"{expression} stays false"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """A key as a person presses it."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._connection.recv(timeout=_DEADLINE_S))
            if message.get("method") == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            if message.get("id") == number:
                assert "error" not in message, message["error"]
                return message["result"]


@contextmanager
def open_browser(profile: Path, num_pages: int = 1) -> Iterator[list[Page]]:
    """Pages of one browser, which ends with the block. `profile` is an empty folder of its own."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *_OPTIONS, *_QUIET, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        connections: list[ClientConnection] = []
        try:
            port = _find_port(profile, process)
            for _ in range(num_pages):
                connections.append(connect(_add_page(port), max_size=None))
            yield [Page(connection) for connection in connections]
        finally:
            for connection in connections:
                connection.close()
            process.terminate()


def _find_port(profile: Path, process: subprocess.Popen) -> int:
    """That of DevTools, as soon as it is known."""
    path, deadline_s = profile / "DevToolsActivePort", time.monotonic() + _DEADLINE_S
    while not (path.is_file() and path.read_text()):
        assert process.poll() is None, "the browser has ended"
        assert time.monotonic() < deadline_s, "the browser does not start"
        time.sleep(0.1)
    return int(path.read_text().split()[0])


def _add_page(port: int) -> str:
    """DevTools address of a new page."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
    with urllib.request.urlopen(request, timeout=_DEADLINE_S) as answer:
        return json.load(answer)["webSocketDebuggerUrl"]
