"""A headless Chromium that opens a page, driven over its debugging pipe without any library."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""Chromium, if this machine has one."""

TIMEOUT = 60.0
"""Seconds to wait for an answer. Arbitrary: a busy machine takes a while to start the browser."""


PLUMBING = """
import fcntl, os, sys
ours = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3]]
for descriptor, one in enumerate(ours, 3):
    os.dup2(one, descriptor)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Program that becomes the browser, which reads from descriptor 3 and writes to descriptor 4."""


class Tab:
    """A tab of the browser."""

    def __init__(self, requests: int, answers: int) -> None:
        self.requests, self.answers, self.rest, self.last = requests, answers, b"", 0
        self.session: str | None = None
        self.complaints: list[str] = []
        """Errors and warnings of the console, and everything that the page tried to load."""

    def send(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result."""
        self.last += 1
        message: dict[str, Any] = {"id": self.last, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.requests, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self.last:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, page: Path, *, width: int, scheme: str) -> None:
        """Open a file in a window of that many pixels, with a `light` or `dark` scheme, and wait until it is loaded."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=page.resolve().as_uri())
        deadline = time.monotonic() + TIMEOUT
        while self.evaluate("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < deadline, "the page is not loaded"
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, in the page, although the page itself may run no script."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """Write a picture of the whole page."""
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(picture["data"]))

    def _receive(self) -> Any:
        while b"\0" not in self.rest:
            received = os.read(self.answers, 1 << 16)
            assert received, "the browser ended"
            self.rest += received
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: Any) -> None:
        method, found = event.get("method"), event.get("params", {})
        if method == "Runtime.consoleAPICalled" or method == "Runtime.exceptionThrown":
            self.complaints.append(str(found))
        elif method == "Log.entryAdded":
            self.complaints.append(found["entry"]["text"])
        elif method == "Network.requestWillBeSent" and not found["request"]["url"].startswith("file:"):
            self.complaints.append(f"loads {found['request']['url']}")


@contextmanager
def open_browser(profile: Path) -> Iterator[Tab]:
    """Start the browser with an empty profile, yield a tab, and end it."""
    assert PROGRAM is not None
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    # Without a sandbox, because containers seldom allow one, and the page is ours.
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}")
    command = (sys.executable, "-c", PLUMBING, str(theirs_in), str(theirs_out), PROGRAM, *options)
    with subprocess.Popen(
        command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as browser:
        os.close(theirs_in)
        os.close(theirs_out)
        tab = Tab(ours_out, ours_in)
        try:
            yield tab
        finally:
            tab.session = None
            os.close(ours_out)
            os.close(ours_in)
            browser.terminate()
