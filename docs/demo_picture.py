"""Take docs/demo.png, the README's picture, from the running page.

    uv run python docs/demo_picture.py [BUNDLE]

Needs Chromium; draws a three with the mouse and photographs what the page answers.
"""

from __future__ import annotations

import math
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).with_name("demo.png")


def main() -> None:
    """Start the page, draw, photograph, stop."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [sys.executable, "-c", "from apps.cli import main; main()", "demo", *sys.argv[1:2], "--no-open"]
    with subprocess.Popen([*line, "--port", str(port)], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        next(text for text in server.stdout if "URL" in text)
        photograph(f"http://localhost:{port}")
        server.terminate()


def photograph(address: str) -> None:
    """Draw a three and wait for the answers."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 800, "height": 850}, device_scale_factor=1.5)
        page.goto(address)
        canvas = page.locator("canvas").last
        canvas.wait_for()
        box = canvas.bounding_box()
        assert box is not None
        upper = [
            (135 + 45 * math.sin(a), 90 - 45 * math.cos(a)) for a in (math.radians(d) for d in range(-60, 181, 10))
        ]
        lower = [(135 + 52 * math.sin(a), 187 - 52 * math.cos(a)) for a in (math.radians(d) for d in range(0, 241, 10))]
        page.mouse.move(box["x"] + upper[0][0], box["y"] + upper[0][1])
        page.mouse.down()
        for x, y in [*upper[1:], *lower]:
            page.mouse.move(box["x"] + x, box["y"] + y)
        page.mouse.up()
        page.get_by_test_id("stMetric").first.wait_for()
        page.get_by_text(
            "pictures go through"
        ).hover()  # away from the canvas, so that its tool bar does not stand in the way
        page.screenshot(path=PICTURE, clip={"x": 0, "y": 90, "width": 800, "height": 750})
        browser.close()


if __name__ == "__main__":
    main()
