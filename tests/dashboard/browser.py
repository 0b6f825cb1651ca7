"""A headless Chromium that opens pages of a dashboard, over the DevTools protocol.

A page lives on a websocket: it is opened and looked at again and again, until it shows
what is waited for.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run")
FLAGS += ("--disable-background-networking", "--hide-scrollbars")


class Page:
    """One tab."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.connection = connection
        self.number = 0

    async def call(self, method: str, **params: Any) -> Any:
        """Call the browser."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        await self.connection.write_message(json.dumps(message))
        while True:
            answer = json.loads(await self.connection.read_message())
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    async def open(self, url: str, width: int = 1300, height: int = 900) -> None:
        """Open a page in a window of that size."""
        size = {"width": width, "height": height}
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            deviceScaleFactor=1,
            mobile=False,
            **size,
        )
        await self.call("Page.navigate", url=url)

    async def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression; None where it fails."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, returnByValue=True
        )
        return answer["result"].get("value")

    async def until(self, script: str, seconds: float = 60) -> Any:
        """Wait until an expression is true; return its value."""
        end = time.monotonic() + seconds
        while not (value := await self.evaluate(script)):
            assert time.monotonic() < end, f"never true: {script}"
            await asyncio.sleep(0.2)
        return value

    async def source(self, name: str) -> dict[str, list[Any]]:
        """Columns of the data that the page holds under a name."""
        script = f"""(() => {{
            for (const d of Bokeh.documents)
                for (const m of d._all_models.values())
                    if (m.name == "{name}" && m.data !== undefined)
                        return Object.fromEntries(Object.entries(
                            m.data instanceof Map ? Object.fromEntries(m.data) : m.data
                        ).map(([k, v]) => [k, Array.from(v, x =>
                            typeof x == "object" && x !== null ? Array.from(x) : x)]));
        }})()"""
        return await self.until(script)

    async def text(self) -> str:
        """All text that is to be seen, that inside of shadow roots included."""
        script = """(() => {
            const walk = (node) => {
                if (node.nodeType == Node.TEXT_NODE) return node.textContent + " ";
                if (["STYLE", "SCRIPT"].includes(node.nodeName)) return "";
                const shadow = node.shadowRoot ? [...node.shadowRoot.childNodes] : [];
                return [...shadow, ...node.childNodes].map(walk).join("");
            };
            return walk(document.body).replace(/\\s+/g, " ");
        })()"""
        return str(await self.evaluate(script))

    async def screenshot(self, path: Path) -> None:
        """Write a picture of the window."""
        answer = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Page]:
    """Start Chromium, and end it with all that it started."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        process = await asyncio.create_subprocess_exec(
            *(CHROMIUM, *FLAGS),
            *(f"--user-data-dir={place}", "--remote-debugging-port=0", "about:blank"),
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            page = Page(await websocket_connect(await _address(Path(place))))
            try:
                yield page
                with contextlib.suppress(Exception):
                    await page.call("Browser.close")
            finally:
                page.connection.close()
        finally:
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                await asyncio.wait_for(process.wait(), 10)
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _address(place: Path) -> str:
    """Return the websocket of the first tab, once the browser listens."""
    port = place / "DevToolsActivePort"
    end = time.monotonic() + 60
    while True:
        assert time.monotonic() < end, "Chromium does not start"
        await asyncio.sleep(0.2)
        with contextlib.suppress(OSError, IndexError, StopIteration):
            url = f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json"
            answer = await AsyncHTTPClient().fetch(url)
            tabs = json.loads(answer.body)
            tab = next(tab for tab in tabs if tab["type"] == "page")
            return str(tab["webSocketDebuggerUrl"])
