"""The demo page in a real browser: draw, upload, read the answer."""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import pytest
from PIL import Image

from kit.bundle import Bundle
from tests.conftest import CHROMIUM, ROOT, Kit

pytestmark = pytest.mark.browser
SHOTS = ROOT / "test-artifacts"


@pytest.fixture
def page_address(digits: Bundle, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [str(Path(sys.executable).with_name("kit")), "demo", str(digits.folder), "--no-open", "--port", str(port)]
    with subprocess.Popen(
        line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as server:
        assert server.stdout is not None
        for text in server.stdout:
            if "URL" in text:
                break
        yield f"http://localhost:{port}"
        os.killpg(server.pid, signal.SIGKILL)  # told to end, streamlit may stay behind and keep its memory


@pytest.fixture
def page(page_address: str) -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        tab = browser.new_page(viewport={"width": 1100, "height": 950})
        tab.asked = []
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.goto(page_address)
        yield tab
        browser.close()


def draw(page, strokes: list[list[tuple[int, int]]]) -> None:
    canvas = page.locator("canvas").last
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for stroke in strokes:
        x, y = stroke[0]
        page.mouse.move(box["x"] + x, box["y"] + y)
        page.mouse.down()
        for x, y in stroke[1:]:
            page.mouse.move(box["x"] + x, box["y"] + y, steps=8)
        page.mouse.up()


def answers(page) -> dict[str, str]:
    found = page.get_by_test_id("stMetric")
    found.first.wait_for()
    return {one.split("\n")[0]: next(part for part in one.split("\n")[1:] if part) for one in found.all_inner_texts()}


def test_a_drawn_digit_is_read_by_every_variant(page) -> None:
    turn = [angle * math.tau / 24 for angle in range(25)]
    draw(page, [[(140 + int(60 * math.sin(a)), 140 - int(95 * math.cos(a))) for a in turn]])
    assert answers(page) == {"fp32": "0", "int8-qdq": "0", "int8-dynamic": "0"}
    assert page.get_by_text(re.compile(r"µs on cpu")).count() == 3
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / "demo-drawn.png", full_page=True)
    assert {urlparse(address).hostname for address in page.asked if address.startswith("http")} == {"localhost"}


def test_pictures_good_and_bad_are_answered_in_words(page, digits: Bundle, tmp_path: Path) -> None:
    golden = digits.golden()
    Image.fromarray(255 - golden.pixels[0]).resize((300, 300)).save(tmp_path / "good.png")
    Image.new("L", (100, 100), 255).save(tmp_path / "blank.png")
    (tmp_path / "corrupt.png").write_bytes(b"no picture at all")
    page.get_by_text("Upload", exact=True).first.click()
    chooser = page.locator("input[type=file]")
    chooser.set_input_files(tmp_path / "good.png")
    assert set(answers(page).values()) == {digits.spec.labels[golden.labels[0]]}
    chooser.set_input_files(tmp_path / "blank.png")
    page.get_by_text("the picture is empty").wait_for()
    chooser.set_input_files(tmp_path / "corrupt.png")
    page.get_by_text("no readable picture").wait_for()


def test_the_figures_are_those_of_the_bundle_and_the_bench(page, digits: Bundle, kit: Kit) -> None:
    page.get_by_role("tab", name="Latency").click()
    page.get_by_text("Not measured on this machine yet").wait_for()
    assert kit("bench", str(digits.folder), "--provider", "cpu", "--batch-size", "1").returncode == 0
    page.reload()
    page.get_by_role("tab", name="Latency").click()
    page.get_by_role("cell", name="baseline").first.wait_for()
    page.get_by_role("tab", name="Accuracy").click()
    published = digits.variant("fp32").accuracy
    assert published is not None
    page.get_by_role("cell", name=f"{100 * published.top1:.2f} %").first.wait_for()
    page.get_by_role("button", name="Count again on this machine").click()
    page.get_by_text("as published").first.wait_for()
    page.screenshot(path=SHOTS / "demo-accuracy.png", full_page=True)
