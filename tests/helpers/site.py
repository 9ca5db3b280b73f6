"""The demo page as a browser sees it: where it is, what a visitor does there, and bundles that it must refuse."""

from __future__ import annotations

import hashlib
import http.client
import json
import math
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

import onnx

from kit.bundle import Bundle, open_folder

CIRCLE = [(140 + int(60 * math.sin(a * math.tau / 24)), 140 - int(95 * math.cos(a * math.tau / 24))) for a in range(25)]
STROKE = [(60, 30), (220, 30)]
GROUND = "getComputedStyle(document.querySelector('.stApp')).backgroundColor"
HOSTILE = """
[server]
address = "0.0.0.0"
enableCORS = false
enableXsrfProtection = false
corsAllowedOrigins = ["http://evil.example"]
allowedHosts = ["*"]
baseUrlPath = "elsewhere"
enableStaticServing = true
enableAgentApi = true
sslCertFile = "nowhere.pem"
[browser]
serverAddress = "evil.example"
gatherUsageStats = true
[global]
developmentMode = true
[client]
showErrorDetails = "full"
[theme]
font = "Evil:https://evil.example/font.css"
"""


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


def draw(page, stroke: list[tuple[int, int]]) -> None:
    """Draw on the demo page, and wait for what it says of that: until then it shows the answer to what was there before."""
    seen = page.get_by_role("img", name="What the model saw")
    seen.or_(page.get_by_text("Draw with the mouse")).first.wait_for()
    _settled(page)
    before = seen.get_attribute("src") if seen.count() else None
    trace(page, stroke)
    page.wait_for_function(
        """before => {
            const seen = document.querySelector('img[alt="What the model saw"]');
            return seen && seen.getAttribute('src') !== before;
        }""",
        arg=before,
    )
    _settled(page)


def _settled(page) -> None:
    """Wait until the page's script has run to its end: what it left out is gone then."""
    page.locator(".stApp[data-test-script-state=notRunning]").wait_for()


def trace(page, stroke: list[tuple[int, int]]) -> None:
    """Draw a line on the first canvas in sight, from point to point, each `(x, y)` in its pixels."""
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
    """Return what each variant reads in ONNX Runtime, from the table, which is unfolded."""
    unfold(page)
    rows = page.locator("table tr", has_text="onnxruntime")
    rows.first.wait_for()
    cells = [row.locator("th, td").all_inner_texts() for row in rows.all()]
    return {one[0].split(" ")[0]: one[1] for one in cells}


def unfold(page) -> None:
    """Open what every contestant answered."""
    page.get_by_test_id("stMetric").first.wait_for()
    folded = page.get_by_test_id("stExpander").filter(has_text="Every answer").locator("details")
    folded.wait_for()
    if folded.get_attribute("open") is None:
        page.get_by_text("Every answer").click()


def tab(page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def measure(page) -> None:
    """Measure for the shortest time there is."""
    tab(page, "Latency")
    page.get_by_role("button", name="Measure").wait_for()
    slider = page.get_by_role("slider")
    slider.focus()
    slider.press("Home")
    page.get_by_test_id("stSliderThumbValue").get_by_text("2 s", exact=True).wait_for()  # else it measures for 15 s
    page.get_by_role("button", name="Measure").click()


def upload(page, path: Path) -> None:
    page.get_by_role("button", name="Another bundle").click()
    page.locator("input[type=file][accept*='kit']").set_input_files(path)


def with_model(bundle: Bundle, change) -> Bundle:
    """Return a bundle whose fp32 file was changed and whose manifest names it so."""
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


def status(address: str, host: str, path: str = "/_stcore/health", **headers: str) -> int:
    """Return the status of an answer to a request that is sent to another name than it asks for."""
    connection = http.client.HTTPConnection("127.0.0.1", urlparse(address).port, timeout=60)
    connection.putrequest("GET", path, skip_host=True)
    for name, value in {"Host": host, **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    found = connection.getresponse().status
    connection.close()
    return found
