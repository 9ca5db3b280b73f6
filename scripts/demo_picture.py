"""The picture of the README, taken from the running page: a digit drawn by mouse, read by every variant in every runtime.

    python scripts/demo_picture.py [docs/demo.png]

Needs Chromium on the path.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

BUNDLE = Path(__file__).parents[1] / "artifacts" / "mnist-mlp"
THREE = [
    (92, 78),
    (120, 52),
    (160, 50),
    (188, 76),
    (176, 112),
    (136, 132),
    (180, 146),
    (200, 182),
    (180, 220),
    (136, 234),
    (90, 216),
]
"""Strokes of a three, in pixels of the canvas."""


def main() -> None:
    """Start the page, draw, and take the picture."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "demo.png")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [str(Path(sys.executable).with_name("kit")), "demo", str(BUNDLE), "--no-open", "--port", str(port)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        next(text for text in server.stdout if "URL" in text)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1180, "height": 640}, device_scale_factor=1.5)
        page.goto(f"http://localhost:{port}")
        page.get_by_test_id("stMetric").first.wait_for()
        box = page.locator("canvas").first.bounding_box()
        assert box is not None
        for place, (x, y) in enumerate(THREE):
            page.mouse.move(box["x"] + x, box["y"] + y, steps=6)
            if place == 0:
                page.mouse.down()
        page.mouse.up()
        page.get_by_test_id("stMetric").get_by_text("3", exact=True).wait_for()
        page.get_by_role("img", name="Where it looked").wait_for()
        page.mouse.move(0, 0)
        page.wait_for_timeout(2000)  # where it looked is found after the answer
        page.screenshot(path=out)
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main()
