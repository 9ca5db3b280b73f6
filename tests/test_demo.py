"""The demo page in a real browser: draw, upload, count, bench, take away; two visitors, and no word to the internet."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import psutil
import pytest
from PIL import Image

from kit.bench import results
from kit.bundle import Bundle, open_folder, pack
from tests.conftest import CHROMIUM, ROOT
from tests.helpers import onnx_files
from tests.helpers.contrast import POOR
from tests.helpers.site import (
    CIRCLE,
    GROUND,
    HOSTILE,
    STROKE,
    Site,
    answers,
    custom,
    draw,
    external,
    measure,
    status,
    tab,
    unfold,
    upload,
    with_model,
)

pytestmark = pytest.mark.browser
SHOTS = ROOT / "test-artifacts"
OF_TAB = {"Try it": "Every answer", "Accuracy": "As published", "Latency": "Measure", "Artifact": "Run it"}
CONTESTANTS = {"fp32", "int8-qdq", "int8-dynamic"}


@contextlib.contextmanager
def serving(bundle: Bundle, folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `kit demo` in a folder; gives the page's address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    line = [str(Path(sys.executable).with_name("kit")), "demo", str(bundle.folder), "--no-open", "--port", str(port)]
    line += ["--allow-host", "demo.example.com"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    with subprocess.Popen(
        line,
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as server:
        assert server.stdout is not None
        for text in server.stdout:
            if "URL" in text:
                break
        yield f"http://localhost:{port}", server
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # told to end, streamlit may stay behind and keep its memory


@pytest.fixture(scope="module")
def site(_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    from playwright.sync_api import sync_playwright

    folder = tmp_path_factory.mktemp("site")
    bundle = open_folder(Path(shutil.copytree(_digits, folder / "digits-mlp")))
    (folder / ".streamlit").mkdir()
    (folder / ".streamlit" / "config.toml").write_text(HOSTILE)  # the page starts in a folder that is anyone's
    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    flags += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with serving(bundle, folder) as (address, server), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield Site(address, server, browser, bundle, folder)
        browser.close()


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


SIZES = [(380, 800), *(pytest.param(size, marks=pytest.mark.slow) for size in ((820, 1180), (1440, 900), (1920, 1080)))]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_opens_with_an_example_that_is_already_read_above_the_fold(site: Site, size: tuple[int, int]) -> None:
    page = site.visit(width=size[0], height=size[1])
    said = page.get_by_text(re.compile("All 6 answers agree .3 variants in 2 runtimes.|They disagree"))
    said.wait_for()
    box = said.bounding_box()
    assert box["y"] + box["height"] <= size[1]
    assert re.search(r"fp32 reads\s+\d\s+[\d.]+ % sure", page.get_by_test_id("stMetric").inner_text())
    assert page.get_by_text("An example: draw over it").count() == 1
    assert page.evaluate("document.querySelector('.stMain').scrollWidth") <= size[0]
    page.context.close()


def test_the_example_goes_with_the_first_stroke_and_with_clear(guest) -> None:
    guest.get_by_text("An example: draw over it").wait_for()
    draw(guest, CIRCLE)
    assert guest.get_by_text("An example: draw over it").count() == 0
    assert set(answers(guest).values()) == {"0"}
    guest.get_by_role("button", name="Clear").click()
    guest.get_by_text("Draw with the mouse").wait_for()


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_pictures_good_blank_corrupt_huge_and_random_are_answered(page, site: Site, tmp_path: Path) -> None:
    golden = site.bundle.golden()[0]
    Image.fromarray(255 - golden.inputs["pixels"][0]).resize((300, 300)).save(tmp_path / "good.png")
    Image.new("L", (100, 100), 255).save(tmp_path / "blank.png")
    colourful = Image.new("RGB", (200, 200), (200, 60, 40))
    colourful.paste((40, 200, 220), (80, 30, 120, 170))
    colourful.save(tmp_path / "colours.png")
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
    chooser.set_input_files(tmp_path / "colours.png")
    page.get_by_text("This picture has colours").wait_for()
    chooser.set_input_files(tmp_path / "huge.png")
    page.get_by_text(re.compile("must be 20(\\.0)?\\s?MB or smaller")).wait_for()
    page.get_by_text("Sample", exact=True).click()
    page.get_by_text(re.compile(r"label \d · digits test sample")).wait_for()
    before = page.get_by_text(re.compile("test sample")).first.inner_text()
    page.get_by_role("button", name="Another picture").click()
    page.wait_for_function("text => !document.body.innerText.includes(text)", arg=before)
    assert set(answers(page)) == CONTESTANTS


@pytest.mark.slow
def test_accuracy_is_counted_kept_and_opened_cell_by_cell(page, site: Site) -> None:
    tab(page, "Accuracy")
    published = site.bundle.variant("fp32").score("top-1")
    page.get_by_role("cell", name=f"{100 * published.value:.2f} %").first.wait_for()
    page.get_by_role("button", name="Count on this machine").click()
    page.get_by_text("What is read as what").wait_for()
    page.get_by_text(f"Counted on this machine: digits, test split, {published.samples:,} samples").wait_for()
    assert f"{100 * published.value:.2f} %" in page.get_by_test_id("stMetric").first.inner_text()
    page.get_by_role("img", name=re.compile("test sample")).first.wait_for()
    _open_a_cell(page)
    page.screenshot(path=SHOTS / "demo-accuracy.png")
    other = site.visit()
    tab(other, "Accuracy")
    other.get_by_text("What is read as what").wait_for()  # it is kept for everyone: nothing of it is a visitor's own
    other.context.close()


def _open_a_cell(page) -> None:
    """Click a cell of the confusion matrix that is not the one in sight: the list below it follows."""
    chosen = page.get_by_role("combobox", name=re.compile("Misread samples"))
    chosen.wait_for()
    cells = page.locator("svg.marks").first.locator(".mark-rect path")
    known = [
        re.match(r"read as: (\w+); label: (\w+); misread: (\d+)", one.get_attribute("aria-label"))
        for one in cells.all()
    ]
    misread = [(place, *one.groups()) for place, one in enumerate(known) if one and one[3] != "0"]
    place, read, label, times = next(one for one in misread if f"{one[2]} read as {one[1]}" not in chosen.input_value())
    cells.nth(place).click(force=True)
    page.wait_for_function(
        "said => [...document.querySelectorAll('input')].some((one) => one.value === said)",
        arg=f"{label} read as {read}: {times}",
    )


@pytest.mark.slow
def test_a_bench_is_run_stopped_downloaded_and_compared(page, site: Site, tmp_path: Path) -> None:
    second = site.visit()
    measure(page)
    page.get_by_role("button", name="Cancel").wait_for()
    while _niceness(site) == {0}:  # its process steps back before it measures
        page.wait_for_timeout(50)
    assert _niceness(site) == {0, 10}
    measure(second)
    second.get_by_text("Waiting until the measurement of another visitor has ended").wait_for()
    second.get_by_role("button", name="Cancel").click()
    second.get_by_text("Stopped: nothing was kept").wait_for()
    page.get_by_text("Measured.").wait_for(timeout=240_000)  # the process starts when a busy machine lets it
    page.get_by_role("cell", name="baseline").first.wait_for()
    page.get_by_text(re.compile(r"digits-mlp \(fp32 [0-9a-f]{8}.* on .*measured here")).wait_for()
    page.screenshot(path=SHOTS / "demo-latency.png")
    page.reload()
    page.get_by_role("combobox", name=re.compile("Results")).wait_for()
    assert page.get_by_text(re.compile("measured here")).count()
    page.get_by_test_id("stSliderThumbValue").get_by_text("2 s", exact=True).wait_for()
    tab(page, "Artifact")
    page.get_by_text("Run it").wait_for()
    tab(page, "Latency")
    page.get_by_role("cell", name="baseline").first.wait_for()
    page.get_by_test_id("stSliderThumbValue").get_by_text("2 s", exact=True).wait_for()
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
    second.get_by_text("Nothing was measured on this machine yet").wait_for()  # what one measures, another does not see
    second.context.close()


def _niceness(site: Site) -> set[int]:
    """Return how far the processes of the server stand back behind others."""
    return {one.nice() for one in psutil.Process(site.process.pid).children(recursive=True)}


def test_a_missing_gpu_is_explained_as_the_doctor_does(page) -> None:
    tab(page, "Latency")
    page.get_by_role("combobox", name=re.compile("Providers")).click()
    page.get_by_role("option", name="cuda").click()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Measure").click()
    page.get_by_text(re.compile("CUDA cannot run here|Measured")).first.wait_for(timeout=60_000)
    if page.get_by_role("button", name="Cancel").count():
        page.get_by_role("button", name="Cancel").click()


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_bundles_with_strange_graphs_are_refused(guest, digits: Bundle, tmp_path: Path) -> None:
    copy = open_folder(Path(shutil.copytree(digits.folder, tmp_path / "copy")))
    upload(guest, pack(with_model(digits, custom), tmp_path))
    guest.get_by_text(re.compile("is refused: .*needs operators of evil.example")).wait_for(timeout=60_000)
    guest.locator("input[type=file][accept*='kit']").set_input_files(pack(with_model(copy, external), tmp_path))
    guest.get_by_text(re.compile("is refused: .*keeps weights in another file")).wait_for(timeout=60_000)
    assert guest.get_by_text("uploaded, runs with limits").count() == 0


@pytest.mark.slow
def test_a_corrupt_bundle_is_refused_and_a_path_is_opened(guest, tiny: Bundle, tmp_path: Path) -> None:
    (tmp_path / "broken.kit").write_bytes(b"PK\x03\x04 and nothing more")
    upload(guest, tmp_path / "broken.kit")
    guest.get_by_text("broken.kit is refused").wait_for()
    box = guest.get_by_role("textbox", name=re.compile("Path of a folder"))
    box.fill(str(tmp_path / "nowhere"))
    box.press("Enter")
    guest.get_by_role("button", name="Open path").click()
    guest.get_by_text("There is no bundle").wait_for()
    box.fill(str(tiny.folder))
    box.press("Enter")
    guest.get_by_role("button", name="Open path").click()
    guest.get_by_role("heading", name="tiny").wait_for()
    assert not guest.get_by_role("textbox", name=re.compile("Path of a folder")).is_visible()  # the choice has closed
    assert guest.title() == "tiny · kit demo"
    assert guest.url.endswith("?bundle=tiny")
    guest.go_back()
    guest.get_by_role("heading", name="digits-mlp").wait_for()
    guest.go_forward()
    guest.get_by_role("heading", name="tiny").wait_for()
    guest.reload()
    guest.get_by_role("heading", name="tiny").wait_for()


def test_an_address_opens_a_tab_and_no_bundle_that_this_page_does_not_know(guest, site: Site, tiny: Bundle) -> None:
    guest.goto(f"{site.address}/?tab=Artifact")
    guest.get_by_text("Run it").wait_for()
    tab(guest, "Latency")
    guest.get_by_role("button", name="Measure").wait_for()
    guest.go_back()
    guest.get_by_text("Run it").wait_for()
    guest.goto(f"{site.address}/?bundle={tiny.folder}")
    guest.get_by_text("This page has no bundle").wait_for()
    guest.goto(f"{site.address}/?bundle=gone+(uploaded)")
    guest.get_by_text("Gone was uploaded, and is gone. What is uploaded stays as long as its visitor").wait_for()


def test_slow_work_says_how_long_it_takes_and_can_be_cancelled(guest) -> None:
    unfold(guest)
    guest.locator("button[data-variant=pills]", has_text="pytorch-compile").click()
    guest.get_by_text(re.compile(r"in pytorch-compile · \d+ s of about \d+ s")).wait_for()
    guest.get_by_role("button", name="Cancel").click()
    guest.get_by_text("Stopped.").wait_for()
    guest.locator("button[data-variant=pills]", has_text="pytorch-compile").click()
    assert set(answers(guest)) == CONTESTANTS


@pytest.mark.slow
def test_a_server_that_stops_names_the_command_that_starts_it(site: Site, tiny: Bundle, tmp_path: Path) -> None:
    with serving(tiny, tmp_path) as (address, server):
        page = site.browser.new_page()
        page.goto(address)
        page.get_by_test_id("stMetric").first.wait_for()
        os.killpg(server.pid, signal.SIGKILL)
        dialog = page.get_by_role("dialog")
        dialog.wait_for(timeout=60_000)
        assert not page.get_by_text("streamlit run").is_visible()
        told = dialog.locator(":has(> [data-testid=stErrorCodeBlock])")
        assert "kit demo" in told.evaluate("one => getComputedStyle(one, '::before').content")
        assert told.evaluate("one => getComputedStyle(one).fontSize") == "0px"
        page.close()


def test_a_model_that_never_answers_keeps_nobody_else_waiting(guest, page, tmp_path: Path) -> None:
    guest.get_by_role("button", name="Another bundle").click()
    box = guest.get_by_role("textbox", name=re.compile("Path of a folder"))
    box.fill(str(onnx_files.endless(tmp_path / "endless.onnx")))
    box.press("Enter")
    guest.get_by_role("button", name="Open path").click()
    draw(page, CIRCLE)
    assert set(answers(page).values()) == {"0"}
    assert guest.get_by_role("heading", name="digits-mlp").count() == 1


@pytest.mark.parametrize(("name", "width"), [("phone", 380), pytest.param("desktop", 1920, marks=pytest.mark.slow)])
def test_it_fits_phones_and_wide_screens_light_and_dark(site: Site, name: str, width: int) -> None:
    page = site.visit(width=width)
    draw(page, CIRCLE)
    assert set(answers(page).values()) == {"0"}
    assert page.evaluate("document.querySelector('.stMain').scrollWidth") <= width
    SHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SHOTS / f"demo-{name}-light.png")
    assert page.evaluate(POOR) == []
    light = page.evaluate(GROUND)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"before => {GROUND} !== before", arg=light)
    assert sum(map(int, re.findall(r"\d+", page.evaluate(GROUND))[:3])) < 200
    page.screenshot(path=SHOTS / f"demo-{name}-dark.png")
    for one in ("Try it", "Accuracy", "Latency", "Artifact"):
        tab(page, one)
        page.wait_for_load_state("networkidle")
        page.get_by_text(OF_TAB[one]).first.wait_for()
        assert page.evaluate("document.querySelector('.stMain').scrollWidth") <= width
        assert page.evaluate(POOR) == [], one
    page.context.close()


def test_everything_can_be_reached_by_keyboard_and_has_a_name(page) -> None:
    draw(page, CIRCLE)
    answers(page)
    page.locator("canvas").first.focus()
    names = []
    for _ in range(8):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                "(e => e.shadowRoot?.activeElement?.ariaLabel ?? e.innerText ?? e.ariaLabel)(document.activeElement)"
            )
        )
    assert {"Every answer", "onnxruntime"} <= {str(name).split("\n")[-1] for name in names}
    unnamed = page.evaluate(
        """[...document.querySelectorAll('.stMain button, .stMain input, .stMain img, .stMain canvas')]
        .filter(e => e.offsetParent && !(e.innerText || e.ariaLabel || e.alt || e.labels?.length || e.title
            || e.getAttribute('aria-labelledby'))).map(e => e.outerHTML.slice(0, 200))"""
    )
    assert unnamed == []


def test_only_the_allowed_hosts_are_answered(site: Site) -> None:
    port = urlparse(site.address).port
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "demo.example.com"):
        assert status(site.address, host) == 200
        assert status(site.address, host, "/_stcore/stream", **upgrade) == 101
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", ""):
        assert status(site.address, host) == 400
        assert status(site.address, host, "/") == 400
        assert status(site.address, host, "/_stcore/stream", **upgrade) == 400
    assert status(site.address, f"localhost:{port}", "/_stcore/stream", **upgrade, Origin="http://evil.example") == 403


@pytest.mark.slow
def test_hundreds_of_quick_clicks_leave_a_server_that_answers(guest, site: Site) -> None:
    (server,) = psutil.Process(site.process.pid).children()
    before, most = server.num_threads(), 0
    for _ in range(10):
        assert guest.evaluate(
            """async () => {
                for (let i = 0; i < 30; i++) {
                    const tabs = document.querySelectorAll('[role=tab]');
                    (tabs[i % 2 ? 0 : 3] ?? document.body).click();
                    await new Promise(requestAnimationFrame);
                }
                return (await fetch('/_stcore/health')).ok;
            }"""
        )
        most = max(most, server.num_threads())
    assert most - before < 20  # if all clicks ran at once, each would have a thread
    tab(guest, "Artifact")
    guest.get_by_text("Run it").wait_for(timeout=240_000)  # the last question comes first, and a machine may be busy


@pytest.mark.slow
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
