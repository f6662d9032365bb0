"""A headless Chromium that a test drives over the DevTools protocol: open a page, press keys, look at what is there."""

import asyncio
import json
import os
import shutil
import subprocess
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_PATIENCE = 60.0  # seconds
_KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "End": 35, "Home": 36, "Enter": 13}


class Page:
    """A tab. `errors`: what its scripts have raised."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.loop, self.socket, self.sent = loop, socket, 0
        self.errors: list[str] = []
        self.call("Page.enable")
        self.call("Runtime.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.sent += 1
        return self.loop.run_until_complete(asyncio.wait_for(self._call(self.sent, method, parameters), _PATIENCE))

    async def _call(self, number: int, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            found = await self.socket.receive_json()
            if found.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(found["params"]["exceptionDetails"]))
            if found.get("id") == number:
                assert "error" not in found, found
                return dict(found["result"])

    def run(self, expression: str) -> Any:
        """The value of an expression of JavaScript; of a promise what it gives."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + _PATIENCE
        while not self.run(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.02)

    def open(self, url: str, *, width: int, height: int = 1000, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.wear(dark=dark)
        self.call("Page.navigate", url="about:blank")  # so that another address of the same page is loaded, too
        self.wait("location.href === 'about:blank'")
        self.call("Page.navigate", url=url)
        self.wait("document.documentElement?.dataset.drawn === 'all'")

    def wear(self, *, dark: bool = False, media: str = "") -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def press(self, key: str) -> None:
        about = {"key": key, "code": key, "windowsVirtualKeyCode": _KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def point(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(b64decode(found["data"]))

    def printed(self) -> bytes:
        return b64decode(
            self.call("Page.printToPDF", printBackground=False, paperWidth=8.27, paperHeight=11.69)["data"]
        )


@contextmanager
def page(folder: Path) -> Iterator[Page]:
    """A tab of a browser whose files are in `folder`."""
    assert PROGRAM is not None
    flags = ["--headless=new", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    flags += ["--hide-scrollbars", "--no-first-run"] + (["--no-sandbox"] if os.geteuid() == 0 else [])
    process = subprocess.Popen([PROGRAM, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    loop = asyncio.new_event_loop()
    try:
        session = loop.run_until_complete(_session())
        try:
            socket = loop.run_until_complete(_attached(session, folder / "DevToolsActivePort"))
            yield Page(loop, socket)
            loop.run_until_complete(socket.close())
        finally:
            loop.run_until_complete(session.close())
    finally:
        process.terminate()
        process.wait(_PATIENCE)
        loop.close()


async def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


async def _attached(session: aiohttp.ClientSession, port: Path) -> aiohttp.ClientWebSocketResponse:
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            number = port.read_text().splitlines()[0]
            async with session.get(f"http://127.0.0.1:{number}/json") as answer:
                tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
            return await session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=1 << 28)
        except (OSError, IndexError, aiohttp.ClientError):
            assert time.monotonic() < end, "the browser does not answer"
            await asyncio.sleep(0.05)
