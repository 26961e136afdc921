"""A headless Chromium, driven through the DevTools protocol over a pair of pipes.

--remote-debugging-pipe: the browser reads commands from descriptor 3 and writes answers and
events to 4, JSON each, ended by NUL. Nothing listens on a port.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-extensions", "--disable-default-apps", "--mute-audio", "--hide-scrollbars",
    "--force-color-profile=srgb", "--disable-dev-shm-usage", "--disable-crash-reporter",
    "--renderer-process-limit=1", "--remote-debugging-pipe",
)  # fmt: skip
ANSWER_SECONDS = 60  # on a machine that is busy with other tests

KEYS = {  # key: (code, Windows key code, text)
    "ArrowLeft": ("ArrowLeft", 37, ""), "ArrowRight": ("ArrowRight", 39, ""),
    "ArrowUp": ("ArrowUp", 38, ""), "ArrowDown": ("ArrowDown", 40, ""),
    "Home": ("Home", 36, ""), "End": ("End", 35, ""),
    "PageUp": ("PageUp", 33, ""), "PageDown": ("PageDown", 34, ""),
    "Tab": ("Tab", 9, ""), "Enter": ("Enter", 13, "\r"), "Escape": ("Escape", 27, ""),
    " ": ("Space", 32, " "),
}  # fmt: skip
SETTLES_MAX = 20
SHIFT = 8


class Chromium:
    """One browser process with an empty profile of its own."""

    def __init__(self, program: str) -> None:
        self.profile = tempfile.mkdtemp(prefix="xenpv-chromium-")
        to_read, self._to = os.pipe()
        self._from, from_write = os.pipe()
        # High numbers first, so that neither is one of the two that the child wants.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (to_read, from_write)]
        os.close(to_read)
        os.close(from_write)
        # A shell puts them on 3 and 4; the browser takes its place.
        script = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "sh", program, *FLAGS, f"--user-data-dir={self.profile}", "about:blank"],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": self.profile},
        )  # fmt: skip
        for fd in ends:
            os.close(fd)
        os.set_blocking(self._to, False)
        self._number = 0
        self._buffer = bytearray()
        self.events: list[dict[str, Any]] = []
        self.front = ""

    def call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """The result of one command; events that come meanwhile go to `events`."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        self._write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(f"{method} was not answered")
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self.events.append(answer)

    def wait(self, method: str, session: str) -> dict[str, Any]:
        """The first event of that name, which may have come already."""
        seen = 0
        while True:
            for event in self.events[seen:]:
                if event.get("method") == method and event.get("sessionId") == session:
                    return event
            seen = len(self.events)
            self.events.append(self._next(f"no {method}"))

    def _write(self, data: bytes) -> None:
        # A large page is sent as a file, so commands are short; still a pipe may be full.
        while data:
            select.select([], [self._to], [], ANSWER_SECONDS)
            data = data[os.write(self._to, data[:65536]) :]

    def _next(self, otherwise: str) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_SECONDS
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._from], [], [], max(left, 0))
            assert ready, otherwise
            data = os.read(self._from, 1 << 20)
            assert data, f"{otherwise}: the browser ended ({self.process.poll()})"
            self._buffer += data
        line, _, rest = bytes(self._buffer).partition(b"\0")
        self._buffer = bytearray(rest)
        return dict(json.loads(line))

    def open(
        self,
        file: Path,
        *,
        width: int = 1280,
        height: int = 900,
        scheme: str = "light",
        fragment: str = "",
    ) -> Tab:
        """A tab with that file, loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, target, session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        tab.resize(width, height)
        tab.scheme(scheme)
        tab.call("Page.navigate", url=file.as_uri() + (fragment and f"#{fragment}"))
        self.wait("Page.loadEventFired", session)
        self.front = ""  # a new tab may have taken the place
        tab.settle()
        return tab

    def close(self) -> None:
        try:
            self.call("Browser.close")
            self.process.wait(20)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self.profile, ignore_errors=True)


class Tab:
    """One page. Its `events` are those of this tab alone."""

    def __init__(self, browser: Chromium, target: str, session: str) -> None:
        self.browser = browser
        self.target = target
        self.session = session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def scheme(self, name: str, media: str = "") -> None:
        """Colour scheme that the reader prefers; `media` print to look at the print style."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is awaited."""
        result = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, f"{script}: {result['exceptionDetails']}"
        return result["result"].get("value")

    def to_front(self) -> None:
        """Only the tab in front has frames and takes keys."""
        if self.browser.front != self.session:
            self.call("Page.bringToFront")
            self.browser.front = self.session

    def settle(self, frames: int = 2) -> None:
        """Until what was asked for is drawn; what that scrolled is drawn a frame later."""
        self.to_front()
        for _ in range(frames):
            self.run("new Promise(done => requestAnimationFrame(() => done()))")

    def press(self, *keys: str) -> None:
        """Keys one after the other: `ArrowLeft`, `Shift+ArrowLeft`, `a`."""
        self.to_front()
        for name in keys:
            shifted, _, key = name.rpartition("+") if name != "+" else ("", "", "+")
            code, number, text = KEYS.get(key, ("", 0, key))
            held = SHIFT if shifted else 0
            common = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": held}
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
            self.call("Input.dispatchKeyEvent", type="keyUp", **common)
        self.settle(1)

    def type(self, text: str) -> None:
        """Text into what has the focus."""
        self.call("Input.insertText", text=text)
        self.settle()

    def click(self, x: float, y: float, *, to: tuple[float, float] | None = None) -> None:
        """A click at a place of the viewport, or a drag from there."""
        mouse = {"button": "left", "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type="mousePressed", x=x, y=y, buttons=1, **mouse)
        if to is not None:
            for part in (0.5, 1.0):
                at = {"x": x + (to[0] - x) * part, "y": y + (to[1] - y) * part}
                self.call(
                    "Input.dispatchMouseEvent", type="mouseMoved", buttons=1, button="left", **at
                )
            x, y = to
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, **mouse)
        self.settle()

    def wheel(self, x: float, y: float, by: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=by)
        self.settle()

    def box(self, selector: str) -> dict[str, float]:
        """Where an element is in the viewport, scrolled there and come to rest: x, y, width, height."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        measure = (
            f"(() => {{ const {{x, y, width, height}} = {element}.getBoundingClientRect();"
            " return {x, y, width, height}; })()"
        )
        found = None
        for _ in range(SETTLES_MAX):  # what changes above it moves it, frames later
            before, found = found, self.run(measure)
            if found == before:
                return dict(found)
            self.settle(4)
        raise AssertionError(f"{selector} does not come to rest: {found}")

    def screenshot(self, file: Path, *, whole: bool = False) -> None:
        self.settle()
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Whatever went wrong: exceptions, errors and warnings of the console, of the policy."""
        found = []
        for event in self.browser.events:
            if event.get("sessionId") != self.session:
                continue
            params = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"].get("exception", params)))
            elif event["method"] == "Log.entryAdded":
                found.append(f"{params['entry']['level']}: {params['entry']['text']}")
            elif event["method"] == "Runtime.consoleAPICalled":
                found.append(f"console.{params['type']}: {params['args']}")
        return found

    def requests(self) -> list[str]:
        """Addresses that were asked for, the page's own included."""
        return [
            event["params"]["request"]["url"]
            for event in self.browser.events
            if event.get("method") == "Network.requestWillBeSent" and event.get("sessionId") == self.session
        ]  # fmt: skip

    def close(self) -> None:
        self.browser.call("Target.closeTarget", targetId=self.target)
