"""The demo page in a real browser: draw, upload, count, bench, take away; two visitors, and no word to the internet."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

import onnx
import psutil
import pytest
from PIL import Image

from kit.bench import results
from kit.bundle import Bundle, open_folder, pack
from tests.conftest import CHROMIUM, ROOT

pytestmark = pytest.mark.browser
SHOTS = ROOT / "test-artifacts"
CIRCLE = [(140 + int(60 * math.sin(a * math.tau / 24)), 140 - int(95 * math.cos(a * math.tau / 24))) for a in range(25)]
STROKE = [(60, 30), (220, 30)]
GROUND = "getComputedStyle(document.querySelector('.stApp')).backgroundColor"
CONTESTANTS = {"fp32", "int8-qdq", "int8-dynamic"}


@dataclass
class Site:
    """A running page, and the browser that looks at it."""

    address: str
    process: subprocess.Popen
    browser: object
    bundle: Bundle
    folder: Path
    asked: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)

    def visit(self, *, width: int = 1100, height: int = 1000):
        context = self.browser.new_context(
            viewport={"width": width, "height": height}, reduced_motion="reduce", has_touch=width < 500
        )
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda said: self.console.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.console.append(str(error)))
        page.goto(self.address)
        page.get_by_role("tab", name="Try it").wait_for()
        return page


@pytest.fixture(scope="module")
def site(_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("site")
    bundle = open_folder(Path(shutil.copytree(_digits, folder / "digits-mlp")))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [str(Path(sys.executable).with_name("kit")), "demo", str(bundle.folder), "--no-open", "--port", str(port)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    flags += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with (
        subprocess.Popen(
            line,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as server,
        sync_playwright() as playwright,
    ):
        assert server.stdout is not None
        for text in server.stdout:
            if "URL" in text:
                break
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield Site(f"http://localhost:{port}", server, browser, bundle, folder)
        browser.close()
        os.killpg(server.pid, signal.SIGKILL)  # told to end, streamlit may stay behind and keep its memory


@pytest.fixture(scope="module")
def _visitor(site: Site):
    return site.visit()


@pytest.fixture
def page(_visitor):
    """One visitor that stays: opening the page anew for each test takes longer than the test."""
    tab(_visitor, "Try it")
    _visitor.get_by_text("Draw", exact=True).click()
    clear = _visitor.get_by_role("button", name="Clear")
    clear.wait_for()
    if clear.is_enabled():
        clear.click()
    _visitor.get_by_text("Draw with the mouse").wait_for()
    return _visitor


@pytest.fixture
def guest(site: Site) -> Iterator[object]:
    """A visitor of one's own, for what changes more than a picture."""
    opened = site.visit()
    yield opened
    opened.context.close()


def draw(page, stroke: list[tuple[int, int]]) -> None:
    canvas = page.locator("canvas").first
    canvas.wait_for()
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + stroke[0][0], box["y"] + stroke[0][1])
    page.mouse.down()
    for x, y in stroke[1:]:
        page.mouse.move(box["x"] + x, box["y"] + y, steps=3)
    page.mouse.up()


def answers(page) -> dict[str, str]:
    """Return what each variant reads in ONNX Runtime, from the table."""
    rows = page.locator("table tr", has_text="onnxruntime")
    rows.first.wait_for()
    cells = [row.locator("th, td").all_inner_texts() for row in rows.all()]
    return {one[0].split(" ")[0]: one[1] for one in cells}


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_a_drawn_digit_is_read_by_every_variant_in_every_runtime(page) -> None:
    page.get_by_text("Draw with the mouse").wait_for()
    draw(page, CIRCLE)
    assert answers(page) == dict.fromkeys(CONTESTANTS, "0")
    assert page.locator("table tr", has_text="openvino").count() == 3
    page.get_by_role("img", name="What the model saw").wait_for()
    page.get_by_role("img", name=re.compile("Where it looked")).wait_for()
    page.get_by_role("button", name="Undo").wait_for()
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / "demo-drawn.png")


def test_strokes_are_undone_and_cleared_and_outlive_another_tab(page) -> None:
    draw(page, CIRCLE)
    assert set(answers(page).values()) == {"0"}
    seen = page.get_by_role("img", name="What the model saw").get_attribute("src")
    draw(page, STROKE)
    page.wait_for_function(
        "src => document.querySelector('img[alt=\"What the model saw\"]')?.getAttribute('src') !== src", arg=seen
    )
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function(
        "src => document.querySelector('img[alt=\"What the model saw\"]')?.getAttribute('src') === src", arg=seen
    )
    tab(page, "Artifact")
    page.get_by_text("Run it").wait_for()
    tab(page, "Try it")
    assert set(answers(page).values()) == {"0"}
    page.get_by_role("button", name="Clear").click()
    page.get_by_text("Draw with the mouse").wait_for()


def test_pictures_good_blank_corrupt_huge_and_random_are_answered(page, site: Site, tmp_path: Path) -> None:
    golden = site.bundle.golden()[0]
    Image.fromarray(255 - golden.inputs["pixels"][0]).resize((300, 300)).save(tmp_path / "good.png")
    Image.new("L", (100, 100), 255).save(tmp_path / "blank.png")
    (tmp_path / "corrupt.png").write_bytes(b"no picture at all")
    (tmp_path / "huge.png").write_bytes(b"x" * (21 * 2**20))
    page.get_by_text("File", exact=True).click()
    chooser = page.locator("input[type=file]").last
    chooser.set_input_files(tmp_path / "good.png")
    assert set(answers(page).values()) == {str(golden.targets["labels"][0])}
    chooser.set_input_files(tmp_path / "blank.png")
    page.get_by_text("The picture is empty").wait_for()
    chooser.set_input_files(tmp_path / "corrupt.png")
    page.get_by_text(re.compile("[Nn]o readable picture")).wait_for()
    chooser.set_input_files(tmp_path / "huge.png")
    page.get_by_text(re.compile("must be 20(\\.0)?\\s?MB or smaller")).wait_for()
    page.get_by_text("Random", exact=True).click()
    page.get_by_text(re.compile(r"label \d · digits test sample")).wait_for()
    before = page.get_by_text(re.compile("test sample")).first.inner_text()
    page.get_by_role("button", name="Another picture").click()
    page.wait_for_function("text => !document.body.innerText.includes(text)", arg=before)
    assert set(answers(page)) == CONTESTANTS


def test_accuracy_is_counted_kept_and_opened_cell_by_cell(page, site: Site) -> None:
    tab(page, "Accuracy")
    published = site.bundle.variant("fp32").score("top-1")
    page.get_by_role("cell", name=f"{100 * published.value:.2f} %").first.wait_for()
    page.get_by_role("button", name="Count on this machine").click()
    page.get_by_text("What is read as what").wait_for()
    page.get_by_text(f"Counted on this machine: digits, test split, {published.samples:,} samples").wait_for()
    assert f"{100 * published.value:.2f} %" in page.get_by_test_id("stMetric").first.inner_text()
    page.get_by_role("combobox", name=re.compile("Misread samples")).wait_for()
    page.get_by_role("img", name=re.compile("test sample")).first.wait_for()
    page.screenshot(path=SHOTS / "demo-accuracy.png")
    other = site.visit()
    tab(other, "Accuracy")
    other.get_by_text("What is read as what").wait_for()  # it is kept for everyone: nothing of it is a visitor's own
    other.context.close()


def measure(page) -> None:
    tab(page, "Latency")
    page.get_by_role("button", name="Measure").wait_for()
    slider = page.get_by_role("slider")
    slider.focus()
    slider.press("Home")
    page.get_by_role("button", name="Measure").click()


@pytest.mark.slow
def test_a_bench_is_run_stopped_downloaded_and_compared(page, site: Site, tmp_path: Path) -> None:
    measure(page)
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped: nothing was kept").wait_for()
    measure(page)
    page.get_by_text("Measured.").wait_for(timeout=40_000)
    page.get_by_role("cell", name="baseline").first.wait_for()
    page.screenshot(path=SHOTS / "demo-latency.png")
    with page.expect_download() as waiting:
        page.get_by_test_id("stDownloadButton").get_by_role("button").click()
    path = tmp_path / "there.json"
    waiting.value.save_as(path)
    assert {row.variant for row in results.load(path).rows} == CONTESTANTS
    page.get_by_text("Results from another machine").click()
    chooser = page.locator("input[type=file]").last
    (tmp_path / "wrong.json").write_text(json.dumps({"kind": "something else"}))
    chooser.set_input_files(tmp_path / "wrong.json")
    page.get_by_text("holds no results of kit bench").wait_for()
    chooser.set_input_files(path)
    page.get_by_text("Results from another machine").wait_for()
    page.get_by_role("combobox", name=re.compile("Compare with")).click()
    page.get_by_role("option", name="uploaded: there.json").click()
    page.get_by_text("Compared, row by row").wait_for()
    second = site.visit()
    tab(second, "Latency")
    second.get_by_text("Nothing was measured on this machine yet").wait_for()  # what one measures, another does not see
    second.context.close()


def test_a_missing_gpu_is_explained_as_the_doctor_does(page) -> None:
    tab(page, "Latency")
    page.get_by_role("combobox", name=re.compile("Providers")).click()
    page.get_by_role("option", name="cuda").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Measure").click()
    page.get_by_text(re.compile("CUDA cannot run here|Measured")).first.wait_for(timeout=60_000)
    if page.get_by_role("button", name="Stop").count():
        page.get_by_role("button", name="Stop").click()


def test_the_artifact_is_shown_and_taken_away(page, site: Site, tmp_path: Path) -> None:
    tab(page, "Artifact")
    page.get_by_text("Run it").wait_for()
    page.get_by_text("4 Gemm, 3 Relu").wait_for()
    page.locator(".stGraphVizChart svg text", has_text="logits").first.wait_for()
    page.get_by_role("radio", name="int8-qdq").click()
    page.get_by_text("QuantizeLinear").first.wait_for()
    with page.expect_download() as waiting:
        page.get_by_role("button", name=f"Download {site.bundle.name}.kit").click()
    path = tmp_path / "taken.kit"
    waiting.value.save_as(path)
    assert path.read_bytes() == pack(site.bundle, tmp_path).read_bytes()
    page.screenshot(path=SHOTS / "demo-artifact.png")


def upload(page, path: Path) -> None:
    page.get_by_role("button", name="Another bundle").click()
    page.locator("input[type=file][accept*='kit']").set_input_files(path)


def test_an_uploaded_bundle_is_checked_and_put_in_sight(guest, page, quantized: Bundle, tmp_path: Path) -> None:
    packed = pack(quantized, tmp_path)
    upload(guest, packed)
    guest.get_by_text(re.compile("was checked: .* agree with their golden samples")).wait_for(timeout=60_000)
    guest.get_by_text("uploaded, runs with limits").wait_for()
    draw(guest, CIRCLE)
    found = answers(guest)
    assert "int8-pixel" in found
    assert set(found.values()) == {"0"}
    assert guest.locator("table tr", has_text="openvino").count() == 0
    assert page.get_by_text("uploaded, runs with limits").count() == 0  # another visitor sees nothing of it


def with_model(bundle: Bundle, change) -> Bundle:
    """Return a bundle whose fp32 file was changed and whose manifest names it so."""
    import hashlib

    path = bundle.path(bundle.variant("fp32").graph)
    model = onnx.load(path)
    change(model)
    data = model.SerializeToString()
    digest = hashlib.sha256(data).hexdigest()
    name = f"fp32-{digest[:8]}.onnx"
    (bundle.folder / name).write_bytes(data)
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    for variant in manifest["variants"]:
        if variant["id"] == "fp32":
            variant["graph"] = {"file": name, "sha256": digest, "size_bytes": len(data)}
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    path.unlink()
    return open_folder(bundle.folder)


def custom(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "evil.example"
    model.opset_import.append(onnx.helper.make_opsetid("evil.example", 1))


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def test_bundles_with_strange_graphs_are_refused(guest, digits: Bundle, tmp_path: Path) -> None:
    copy = open_folder(Path(shutil.copytree(digits.folder, tmp_path / "copy")))
    upload(guest, pack(with_model(digits, custom), tmp_path))
    guest.get_by_text(re.compile("is refused: .*needs operators of evil.example")).wait_for(timeout=60_000)
    guest.locator("input[type=file][accept*='kit']").set_input_files(pack(with_model(copy, external), tmp_path))
    guest.get_by_text(re.compile("is refused: .*keeps weights in another file")).wait_for(timeout=60_000)
    assert guest.get_by_text("uploaded, runs with limits").count() == 0


def test_a_corrupt_bundle_is_refused_and_a_path_is_opened(guest, tiny: Bundle, tmp_path: Path) -> None:
    (tmp_path / "broken.kit").write_bytes(b"PK\x03\x04 and nothing more")
    upload(guest, tmp_path / "broken.kit")
    guest.get_by_text("broken.kit is refused").wait_for()
    box = guest.get_by_role("textbox", name=re.compile("Path of a folder"))
    box.fill(str(tmp_path / "nowhere"))
    box.press("Enter")
    guest.get_by_role("button", name="Open path").click()
    guest.get_by_text("there is no bundle").wait_for()
    box.fill(str(tiny.folder))
    box.press("Enter")
    guest.get_by_role("button", name="Open path").click()
    guest.get_by_role("heading", name="tiny").wait_for()


@pytest.mark.parametrize(("name", "width"), [("phone", 380), ("desktop", 1920)])
def test_it_fits_phones_and_wide_screens_light_and_dark(site: Site, name: str, width: int) -> None:
    page = site.visit(width=width)
    draw(page, CIRCLE)
    assert set(answers(page).values()) == {"0"}
    assert page.evaluate("document.querySelector('.stMain').scrollWidth") <= width
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"demo-{name}-light.png")
    light = page.evaluate(GROUND)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"before => {GROUND} !== before", arg=light)
    assert sum(map(int, re.findall(r"\d+", page.evaluate(GROUND))[:3])) < 200
    page.screenshot(path=SHOTS / f"demo-{name}-dark.png")
    page.context.close()


def test_everything_can_be_reached_by_keyboard_and_has_a_name(page) -> None:
    page.locator("canvas").first.wait_for()
    page.locator("canvas").first.focus()
    names = []
    for _ in range(6):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                "(e => e.shadowRoot?.activeElement?.ariaLabel ?? e.innerText ?? e.ariaLabel)(document.activeElement)"
            )
        )
    assert "onnxruntime" in " ".join(map(str, names))
    unnamed = page.evaluate(
        """[...document.querySelectorAll('.stMain button, .stMain input, .stMain img, .stMain canvas')]
        .filter(e => e.offsetParent && !(e.innerText || e.ariaLabel || e.alt || e.labels?.length || e.title
            || e.getAttribute('aria-labelledby'))).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []


def test_nothing_asks_the_internet_and_the_console_is_clean(site: Site) -> None:
    """Of this module's visits so far, and of one that sees every tab."""
    page = site.visit()
    draw(page, CIRCLE)
    answers(page)
    for name in ("Accuracy", "Latency", "Artifact"):
        tab(page, name)
        page.wait_for_load_state("networkidle")
    page.get_by_text("Run it").wait_for()
    page.context.close()
    asked = {urlparse(address).hostname for address in site.asked if address.startswith(("http", "ws"))}
    assert asked == {"localhost"}
    assert [said for said in site.console if "net::ERR_ABORTED" not in said] == []
    tree = [psutil.Process(site.process.pid), *psutil.Process(site.process.pid).children(recursive=True)]
    sockets = [one for process in tree for one in process.net_connections(kind="inet")]
    assert sockets
    assert {one.laddr.ip for one in sockets} <= {"127.0.0.1", "::1"}
    assert {one.raddr.ip for one in sockets if one.raddr} <= {"127.0.0.1", "::1"}
