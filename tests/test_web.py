"""The page that `kit web` writes, in a real browser: the same pixels and answers as in Python, alone and without a network."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import kit
from apps.web.build import OWN, Site, build
from apps.web.trial import tried
from kit.bundle import Bundle, find, open_folder
from kit.errors import UsageError, VerifyFailed
from kit.runtime.browser import packages
from kit.runtime.browser.chromium import Tab
from kit.runtime.browser.pages import Pages, below
from kit.tasks.images import Crop, run_pipeline
from kit.tasks.images.layout import layout_of

from .conftest import Kit
from .helpers.bundles import overwrite
from .helpers.site import CIRCLE, trace

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("web_packages")]

OTHER_WINDOWS = [(380, False), (820, True), (820, False), (1440, True)]
LAB = b"""<!doctype html><script type="module">
import * as pictures from "./pictures.js";
const bytesOf = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
window.encode = async ([data, want]) => {
  try {
    return Array.from(pictures.encode(await pictures.read(new Blob([bytesOf(data)])), want));
  } catch (error) {
    if (error instanceof pictures.PictureInvalid) return "refused";
    throw error;
  }
};
document.documentElement.dataset.ready = "yes";
</script>"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Tab]:
    """The page's own modules, without a model."""
    files = below(OWN)
    with Pages(lambda name: LAB if name == "lab.html" else files(name)) as pages:
        tab = Tab(f"{pages.address}lab.html")
        yield tab
        tab.close()


def drawing(seed: int) -> Image.Image:
    """A stroke of any pen on paper under uneven light, or on nothing, of any size."""
    random = np.random.default_rng(seed)
    side = int(random.choice([60, 200, 280, 400, 700, 1400]))
    ink = Image.new("L", (side, side), 0)
    points = [tuple(random.uniform(0.2, 0.8, 2) * side) for _ in range(int(random.integers(3, 7)))]
    ImageDraw.Draw(ink).line(points, fill=255, width=max(2, int(side * random.uniform(0.02, 0.1))), joint="curve")
    kind = seed % 4
    if kind == 0:
        return ink
    if kind == 1:
        clear = Image.new("RGBA", (side, side), (20, 40, 160, 0))
        clear.putalpha(ink)
        return clear
    light = np.linspace(255, random.uniform(120, 255), side)[:, np.newaxis] + random.normal(0, 3, (side, side))
    paper = np.where(np.asarray(ink) > 127, 0.35 * light, light)
    grey = Image.fromarray(np.clip(paper, 0, 255).astype(np.uint8))
    return grey if kind == 2 else Image.merge("RGB", (grey, grey, grey.point(lambda one: one * 0.8)))


def painting(seed: int, mode: str) -> Image.Image:
    """Colours and shapes in a mode of Pillow."""
    random = np.random.default_rng(seed)
    width, height = (int(one) for one in random.integers(20, 330, 2))
    if mode == "I;16":
        return Image.fromarray(random.integers(900, 40_000, (height, width)).astype(np.uint16))
    picture = Image.new("RGBA", (width, height), (0, 0, 0, 0))
    pen = ImageDraw.Draw(picture)
    for _ in range(12):
        box = sorted(random.integers(0, width, 2)), sorted(random.integers(0, height, 2))
        corners = (int(box[0][0]), int(box[1][0]), int(box[0][1]), int(box[1][1]))
        pen.ellipse(corners, fill=tuple(int(one) for one in random.integers(0, 256, 4)))
    return picture if mode == "RGBA" else picture.convert("RGB").convert(mode)


def png(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def in_both(lab: Tab, data: bytes, pipeline: str, shape: tuple[int, ...], **crop: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return what Python and the browser make of a picture."""
    layout, how = layout_of(shape), Crop(**crop)
    want = {
        "pipeline": pipeline, "dtype": "uint8", "colours": "RGB", "mean": [], "std": [], "height": layout.height,
        "width": layout.width, "channels": layout.channels, "axis": layout.axis,
        "crop": {"resize": how.resize, "crop_pct": how.crop_pct, "interpolation": how.interpolation},
    }  # fmt: skip
    found = lab.call("(given) => window.encode(given)", [base64.b64encode(data).decode(), want])
    return run_pipeline(data, pipeline, layout, how), np.array(found, np.int64).reshape(shape)


@pytest.mark.parametrize("seeds", [range(3), pytest.param(range(3, 40), marks=pytest.mark.slow)], ids=["few", "many"])
@pytest.mark.parametrize("pipeline", ["mnist-ink@1", "mnist-ink@2", "mnist-ink@3"])
def test_drawings_become_the_same_pixels_in_the_browser(lab: Tab, pipeline: str, seeds: range) -> None:
    for seed in seeds:
        python, browser = in_both(lab, png(drawing(seed)), pipeline, (28, 28))
        assert np.array_equal(python, browser), f"seed {seed}: {np.abs(python - browser).max()}"


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "I;16"])
@pytest.mark.parametrize(("pipeline", "shape", "crop"), [
    ("resize@1", (20, 31), {}), ("resize@2", (3, 64, 48), {}), ("resize@2", (40, 40, 4), {}),
    ("imagenet@2", (3, 56, 56), {"interpolation": "bicubic"}), ("imagenet@1", (32, 48, 3), {"resize": 70}),
    ("imagenet@2", (3, 24, 24), {"interpolation": "lanczos", "crop_pct": 1.0}),
    ("imagenet@2", (1, 24, 24), {"interpolation": "nearest"}),
])  # fmt: skip
def test_pictures_become_the_same_pixels_in_the_browser(
    lab: Tab, mode: str, pipeline: str, shape: tuple[int, ...], crop: dict[str, Any]
) -> None:
    for seed in range(2):
        python, browser = in_both(lab, png(painting(seed, mode)), pipeline, shape, **crop)
        assert np.array_equal(python, browser), f"seed {seed}: {np.abs(python - browser).max()}"


def test_a_tall_picture_is_scaled_in_pillows_order(lab: Tab) -> None:
    """Since version 13 Pillow scales what shrinks more in height than twice in width downwards first: pixels round apart."""
    random = np.random.default_rng(1)
    for width, height in ((40, 300), (29, 65), (60, 61), (300, 40)):
        tall = Image.fromarray(random.integers(0, 256, (height, width, 3)).astype(np.uint8))
        python, browser = in_both(lab, png(tall), "resize@2", (3, 20, 23))
        assert np.array_equal(python, browser), (width, height)


def test_a_photograph_differs_by_what_the_two_decoders_differ(lab: Tab) -> None:
    python, browser = in_both(lab, png(painting(1, "RGB"), "JPEG"), "imagenet@2", (3, 56, 56))
    assert np.abs(python - browser).max() <= 3


@pytest.mark.parametrize("picture", [Image.new("L", (280, 280), 255), Image.new("L", (300, 4), 0)])
def test_nothing_drawn_is_refused_in_words(lab: Tab, picture: Image.Image) -> None:
    want = {"pipeline": "mnist-ink@3", "dtype": "uint8", "height": 28, "width": 28, "channels": 1, "axis": None}
    assert lab.call("(given) => window.encode(given)", [base64.b64encode(png(picture)).decode(), want]) == "refused"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The published bundle as a page, in two variants."""
    return build(
        find("mnist-mlp"), tmp_path_factory.mktemp("web") / "site", variants=("fp32", "int8-pixel"), webgpu=False
    )


@pytest.mark.slow
def test_every_variant_and_every_item_is_proved_in_the_browser(digits: Site) -> None:
    found = tried(digits.folder, digits.variants)
    assert found.items == (3, 3)
    assert found.most == 0
    assert found.samples == {"logits": (256, 256)}


def test_the_page_itself_is_small(digits: Site) -> None:
    assert digits.bytes["page"] < 400_000


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    from .conftest import CHROMIUM

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, digits: Site) -> Iterator[Callable[..., Any]]:
    with Pages(below(digits.folder)) as pages:
        contexts = []

        def visit(path: str = "", *, width: int = 1100, height: int = 800, dark: bool = False):
            context = chromium.new_context(
                viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
            )
            contexts.append(context)
            page = context.new_page()
            page.problems = []
            page.on("console", lambda said: page.problems.append(said.text) if said.type == "error" else None)
            page.on("pageerror", lambda error: page.problems.append(str(error)))
            own = (pages.address, "blob:", "data:")
            page.on("request", lambda one: None if one.url.startswith(own) else page.problems.append(one.url))
            page.goto(pages.address + path)
            page.wait_for_selector("[data-ready=yes]", state="attached")
            return page

        visit.pages = pages
        yield visit
        for context in contexts:
            context.close()


def test_it_opens_with_an_example_that_is_already_read(visit) -> None:
    page = visit()
    assert re.fullmatch(r"\d", page.locator("#answer h2").inner_text())
    assert "sure" in page.locator("#answer").inner_text()
    assert "WebAssembly" in page.locator("#runs").text_content()
    assert page.problems == []


def test_what_is_drawn_is_read(visit) -> None:
    page = visit()
    page.locator("#clear").click()
    trace(page, CIRCLE)
    page.locator("#answer h2", has_text="0").wait_for()


def test_a_file_is_read_and_one_that_is_none_is_said_to_be(visit, tmp_path: Path) -> None:
    page = visit()
    picture = Image.new("L", (280, 280), 255)
    ImageDraw.Draw(picture).line([(80, 60), (210, 60), (130, 230)], fill=0, width=20, joint="curve")
    picture.save(tmp_path / "seven.png")
    page.locator("input[type=file]").set_input_files(tmp_path / "seven.png")
    page.locator("#answer h2", has_text="7").wait_for()
    (tmp_path / "none.png").write_bytes(b"no picture")
    page.locator("input[type=file]").set_input_files(tmp_path / "none.png")
    page.locator("#answer .bad", has_text="no picture").wait_for()


def test_the_button_verifies(visit) -> None:
    page = visit()
    page.get_by_text("How it runs here").click()
    page.get_by_role("button", name="Verify").click()
    page.locator("#verified li", has_text="the same answer on 256 of 256").wait_for()
    page.locator("#verified li", has_text="3 of 3 items").wait_for()
    assert page.locator("#verified .bad").count() == 0


@pytest.mark.slow
def test_another_variant_is_chosen_and_the_address_keeps_it(visit) -> None:
    page = visit()
    page.get_by_text("How it runs here").click()
    page.locator("#variant").select_option("int8-pixel")
    page.locator("#runs", has_text="int8-pixel").wait_for()
    assert page.url.endswith("#variant=int8-pixel")
    assert "int8-pixel" in visit("#variant=int8-pixel").locator("#runs").text_content()


@pytest.mark.slow
def test_it_works_without_a_network_once_it_was_seen(visit) -> None:
    page = visit()
    page.evaluate("() => navigator.serviceWorker.ready.then(() => undefined)")
    page.reload()
    page.wait_for_selector("[data-ready=yes]", state="attached")
    assert page.evaluate("() => crossOriginIsolated")
    visit.pages.close()
    page.reload()
    page.wait_for_selector("[data-ready=yes]", state="attached")
    assert re.fullmatch(r"\d", page.locator("#answer h2").inner_text())


@pytest.mark.slow
def test_it_can_be_installed(visit) -> None:
    page = visit()
    page.evaluate("() => navigator.serviceWorker.ready.then(() => undefined)")
    page.reload()
    page.wait_for_selector("[data-ready=yes]", state="attached")
    asked = page.context.new_cdp_session(page)
    assert asked.send("Page.getAppManifest")["errors"] == []
    found = {one["errorId"] for one in asked.send("Page.getInstallabilityErrors")["installabilityErrors"]}
    assert found <= {"in-incognito"}  # as every window of a test is
    kept = page.evaluate(
        "async () => (await (await caches.open((await caches.keys())[0])).keys()).map((one) => new URL(one.url).pathname)"
    )
    assert any(one.startswith("/model/fp32") for one in kept)
    assert not any(one.startswith(("/model/int8", "/proof.b")) for one in kept)


@pytest.mark.parametrize(
    ("width", "dark"),
    [(380, True), (1440, False), *(pytest.param(*one, marks=pytest.mark.slow) for one in OTHER_WINDOWS)],
)
def test_nothing_is_wider_than_the_screen_and_every_word_can_be_read(visit, width: int, dark: bool) -> None:
    page = visit(width=width, dark=dark)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    ratio = page.evaluate("""() => {
      const light = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255)
          .map((one) => one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ground = light(getComputedStyle(document.body).backgroundColor);
      return Math.min(...[...document.querySelectorAll("h1, h2, p, td, button, summary")].map((one) => {
        const text = light(getComputedStyle(one).color);
        return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
      }));
    }""")
    assert ratio >= 4.5


TEXTS = [
    "A nice film, unbelievably nice!",
    "Naïve cafés sell 3,5 % more tea — 你好, wörld! 🙂",
    "word " * 40,
]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Vectors of texts, by a WordPiece tokenizer as BERT has it, cut to 16 tokens."""
    import tokenizers
    import torch

    import exporters
    from kit.tasks.text import TextEmbedding
    from kit.tensors import Axis, Signature, TensorSpec

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "nice", "film", "##s", "##ly", "##able", "un", "##believ", "word"]
    words += [*"abcdefghijklmnopqrstuvwxyz,.!%—0123456789", *(f"##{one}" for one in "abcdefghijklmnopqrstuvwxyz")]
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece({one: n for n, one in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("sentences")
    made.save(str(folder / "tokenizer.json"))

    class Words(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(len(words), 8)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.words(input_ids) * attention_mask.unsqueeze(-1)

    signature = Signature(
        inputs=tuple(
            TensorSpec(name=name, dtype="int64", shape=("batch", "sequence"), below=below)
            for name, below in (("input_ids", len(words)), ("attention_mask", 2))
        ),
        outputs=(TensorSpec(name="vectors", dtype="float32", shape=("batch", "sequence", 8)),),
        axes={"sequence": Axis(most=64, typical=(4, 8))},
    )
    task = TextEmbedding(tokenizer=folder / "tokenizer.json", max_tokens=16, normalize=True)
    return exporters.export(
        Words(), name="sentences", task=task, signature=signature, raw=TEXTS, out=folder / "sentences"
    ).bundle


@pytest.mark.slow
def test_texts_become_the_same_tokens_and_vectors_in_the_browser(sentences: Bundle, tmp_path: Path, chromium) -> None:
    site = build(sentences, tmp_path / "site", webgpu=False)
    found = tried(site.folder, site.variants)
    assert found.items == (3, 3)
    with Pages(below(site.folder)) as pages, kit.load(sentences.folder) as engine:
        page = chromium.new_page()
        page.goto(f"{pages.address}?plain")
        page.wait_for_selector("[data-ready=yes]", state="attached")
        page.get_by_label("First text").fill("nice films")
        page.get_by_label("Second text").fill("a word")
        page.get_by_role("button", name="Compare").click()
        wanted = float(engine.predict(["nice films", "a word"]).similarities[0, 1])
        page.locator("#answer h2", has_text=f"{wanted:.3f}").wait_for()
        page.close()


def test_a_tokenizer_that_the_page_cannot_read_leaves_tensors(reviews: Path, tmp_path: Path) -> None:
    site = build(open_folder(reviews), tmp_path / "site", webgpu=False)
    assert site.remarks == ("the page cannot read a tokenizer of the kind WordLevel: people give it tensors",)
    assert tried(site.folder, site.variants).items == (0, 0)


@pytest.mark.slow
def test_a_model_without_a_task_takes_tensors(duo: Bundle, tmp_path: Path) -> None:
    site = build(duo, tmp_path / "site", webgpu=False)
    found = tried(site.folder, site.variants)
    assert found.items == (0, 0)
    described = json.loads((site.folder / "site.json").read_text())
    assert [one["name"] for one in described["task"]["inputs"]] == [spec.name for spec in duo.signature.inputs]


def test_a_page_is_replaced_if_nothing_in_it_was_changed(digits: Site, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(digits.folder, tmp_path / "site"))
    again = build(find("mnist-mlp"), folder, webgpu=False)
    assert again.variants == ("fp32",)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="left alone"):
        build(find("mnist-mlp"), folder, webgpu=False)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_page_that_fails_its_check_does_not_appear(tmp_path: Path) -> None:
    def refuse(folder: Path, variants: Sequence[str]) -> None:
        assert (folder / "index.html").is_file()
        raise VerifyFailed(f"{variants} are wrong in this browser")

    with pytest.raises(VerifyFailed):
        build(find("mnist-mlp"), tmp_path / "site", webgpu=False, check=refuse)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_keep_its_promise_becomes_no_page(
    kit_inside: Kit, quantized: Bundle, tmp_path: Path
) -> None:
    path = quantized.folder / "manifest.json"
    said = json.loads(path.read_text())
    for variant in said["variants"]:
        for one in variant["fidelity"]:
            one["rms_error"] = one["rms_error"] / 1000
    overwrite(path, json.dumps(said).encode())
    done = kit_inside("web", str(quantized.folder), "--variant", "int8-qdq", "-o", str(tmp_path / "site"))
    assert done.returncode == 1
    assert "does not give here what its bundle promises" in done.stderr
    assert not (tmp_path / "site").exists()


@pytest.mark.slow
def test_bench_and_verify_know_the_browser(kit_inside: Kit, tiny: Bundle, tmp_path: Path) -> None:
    done = kit_inside("verify", str(tiny.folder), "--runtime", "browser")
    assert done.returncode == 0, done.stderr
    assert "browser" in done.stdout
    results = tmp_path / "results.json"
    line = ["bench", str(tiny.folder), "--runtime", "onnxruntime", "--runtime", "browser", "--batch-size", "1"]
    done = kit_inside(*line, "--budget", "4s", "--json", str(results))
    assert done.returncode == 0, done.stderr
    rows = [row for row in json.loads(results.read_text())["rows"] if row["runtime"] == "browser"]
    assert rows
    assert all(row["status"] == "ok" and row["latency"]["p50_us"] > 0 for row in rows)


def test_an_archive_of_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "kept_in", lambda: tmp_path)
    (tmp_path / packages.TOKENIZERS.archive).write_bytes(b"something else")
    with pytest.raises(Exception, match="its hash differs"):
        packages.unpack(packages.TOKENIZERS, tmp_path)


def test_without_npm_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "kept_in", lambda: tmp_path / "npm")
    monkeypatch.setattr(packages.shutil, "which", lambda *_, **__: None)
    with pytest.raises(Exception, match="no npm to fetch it") as raised:
        packages.unpack(packages.RUNTIME, tmp_path)
    assert f"npm pack onnxruntime-web@{packages.RUNTIME.version}" in raised.value.hint


def test_only_names_of_this_machine_are_answered(digits: Site) -> None:
    import http.client

    with Pages(below(digits.folder)) as pages:
        port = int(pages.address.rstrip("/").rpartition(":")[2])
        for host, wanted in ((f"localhost:{port}", 200), ("evil.example", 403)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/site.json", headers={"Host": host})
            assert connection.getresponse().status == wanted
        for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", path)
            assert connection.getresponse().status == 404
