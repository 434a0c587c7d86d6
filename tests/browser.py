"""A headless chromium, driven over its own debugging pipe: standard library only."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path


# Starts a program with two given descriptors as 3, where the browser reads commands, and 4, where it writes answers.
LAUNCHER = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(descriptor), fcntl.F_DUPFD, 10) for descriptor in sys.argv[1:3])
os.dup2(read, 3)
os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One tab. The browser may talk to this machine only; `requests` lists every address that the page asked for.

    Args:
        profile: folder for its files.
        size: (width, height) of the window in CSS pixels.
        mobile: touch screen and the layout of a phone.
    """

    def __init__(self, profile: Path, size: tuple[int, int] = (1280, 900), mobile: bool = False):
        (read_end, self._write), (self._read, write_end) = os.pipe(), os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCHER, str(read_end), str(write_end), CHROMIUM]
            + ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
            + ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-background-networking"]
            + ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--no-proxy-server", "about:blank"],
            pass_fds=(read_end, write_end),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_end)
        os.close(write_end)
        self._buffer, self._numbers, self._session = b"", itertools.count(1), None
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "DOM"):
            self.send(f"{domain}.enable")
        width, height = size
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)  # it ends by itself when nobody can command it
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self._read)

    def send(self, method: str, **params: object) -> dict:
        """A command of the DevTools protocol and its answer; what happens meanwhile is noted."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _receive(self, timeout: float = 60) -> dict:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], timeout)[0]:
                raise TimeoutError(f"the browser has said nothing for {timeout} seconds")
            piece = os.read(self._read, 1 << 20)
            if not piece:
                raise RuntimeError("the browser has ended")
            self._buffer += piece
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def run(self, expression: str) -> object:
        """The value of a JavaScript expression; promises are awaited."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']['exception'].get('description')}")
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 30) -> object:
        """Waits until a JavaScript expression is true, and returns it."""
        end = time.monotonic() + seconds
        while not (value := self.run(expression)):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {seconds} seconds: {expression}")
            time.sleep(0.1)
        return value

    def open(self, url: str) -> None:
        self.send("Page.navigate", url=url)

    def choose_file(self, selector: str, path: Path) -> None:
        """Gives a file to an <input type=file>."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def download(self, selector: str, folder: Path, name: str, seconds: float = 30) -> Path:
        """Clicks a button that saves a file, and waits for the file."""
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self.click(selector)
        end = time.monotonic() + seconds
        while not (folder / name).is_file():
            if time.monotonic() > end:
                raise TimeoutError(f"{name} did not come within {seconds} seconds, but {os.listdir(folder)}")
            time.sleep(0.1)
        return folder / name

    def click(self, selector: str, at: tuple[float, float] = (0.5, 0.5)) -> None:
        """A mouse click on an element, at shares of its width and height, once the layout is at rest."""
        find = f"document.querySelector({selector!r})"
        place = f"JSON.stringify({find}.getBoundingClientRect())"
        self.run(f"{find}.scrollIntoView({{block: 'center'}})")
        before = None
        while before != (now := self.wait(f"[...document.images].every(image => image.complete) && {place}")):
            before = now
            time.sleep(0.1)
        box = json.loads(now)
        x, y = box["x"] + box["width"] * at[0], box["y"] + box["height"] * at[1]
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Replaces the text of a field as a paste would, and leaves it."""
        self.run(f"(() => {{ const e = document.querySelector({selector!r}); e.focus(); e.select(); }})()")
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key="Delete", code="Delete", windowsVirtualKeyCode=46)
        self.send("Input.insertText", text=text)
        self.run("document.activeElement.blur()")

    def screenshot(self, path: Path) -> None:
        """The whole page, also what lies below the window."""
        image = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(image["data"]))
