"""The demo page without a browser: what it says in states that are quick to bring about."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from apps.demo import visitor
from kit.bundle import Bundle
from tests.conftest import ROOT

PAGE = ROOT / "apps" / "demo" / "page.py"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, cache: Path):  # noqa: ARG001 - nothing goes into the user's own cache
    opened: list[AppTest] = []

    def show(path: Path | str, tab: str = "Try it", **state: object) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["page.py", str(path)])
        app = AppTest.from_file(str(PAGE), default_timeout=60)
        app.session_state["tab"] = tab
        for name, value in state.items():
            app.session_state[name] = value
        opened.append(app)
        return app.run()

    yield show
    for app in opened:
        if "visitor" in app.session_state:
            app.session_state["visitor"].forget()


def texts(elements) -> str:
    return "\n".join(str(one.value) for one in elements).replace("\\", "")


def test_a_bundle_that_is_not_there_is_said_with_what_to_do(page) -> None:
    app = page("nothing-of-that-name")
    assert "there is no bundle" in texts(app.error)
    assert not app.exception


def test_a_bundle_without_variants_says_what_to_type(page, tiny: Bundle) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text())
    (tiny.folder / "manifest.json").write_text(json.dumps({**manifest, "variants": [], "default_variant": None}))
    app = page(tiny.folder)
    assert "no exported variant" in texts(app.error)
    assert not app.exception


def test_the_first_view_invites_to_draw(page, tiny: Bundle) -> None:
    app = page(tiny.folder)
    assert not app.exception
    assert app.title[0].value == "tiny"
    assert "Draw with the mouse" in texts(app.info)
    assert "takes uint8 [batch, 4, 4]" in texts(app.caption)


@pytest.mark.parametrize("picture", ["data:image/png;base64,%%%", "data:image/png;base64,aGVsbG8="])
def test_a_canvas_that_sends_nonsense_is_no_defect(page, digits: Bundle, picture: str) -> None:
    app = page(digits.folder, drawing={"strokes": [[[1, 2]]], "picture": picture})
    assert not app.exception
    assert app.info or "readable picture" in texts(app.warning)


def test_data_that_is_not_here_is_said(page, tiny: Bundle) -> None:
    app = page(tiny.folder, "Accuracy")
    assert not app.exception
    assert "without labelled data" in texts(app.info)
    assert "not on this machine" in texts(app.info)


def test_a_damaged_variant_is_a_line_among_those_that_answer(page, digits: Bundle) -> None:
    path = digits.path(digits.variant("int8-qdq").artifact)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    app = page(digits.folder, source="Random")
    assert not app.exception
    assert "int8-qdq · onnxruntime" in texts(app.caption)
    assert "was altered" in texts(app.caption)
    assert app.metric[0].value in digits.spec.labels


def test_a_damaged_results_file_is_said(page, digits: Bundle) -> None:
    (digits.folder.parent / "digits-mlp.bench.json").write_text("{ no json")
    app = page(digits.folder, "Latency")
    assert not app.exception
    assert "is no JSON" in texts(app.error)
    assert "Nothing was measured" in texts(app.info)


def test_under_the_threshold_it_says_that_it_is_unsure(page, tiny: Bundle) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text())
    manifest["spec"] |= {"abstain_below": 0.9999, "temperature": 100.0}
    (tiny.folder / "manifest.json").write_text(json.dumps(manifest))
    app = page(tiny.folder, source="Random")
    assert not app.exception
    assert "Unsure: the model keeps silent under 100.0 %" in texts(app.warning)
    assert "golden sample" in texts(app.caption)


def test_what_a_stranger_wrote_stays_text(page, tiny: Bundle) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text())
    manifest["spec"]["architecture"] = "![x](http://evil.example/x.png)"
    (tiny.folder / "manifest.json").write_text(json.dumps(manifest))
    app = page(tiny.folder)
    assert not app.exception
    assert "!\\[x\\](http\\://evil.example/x.png)" in app.caption[0].value


def test_a_bundle_that_disappears_leaves_the_choice_of_another(page, tiny: Bundle) -> None:
    app = page(tiny.folder)
    shutil.rmtree(tiny.folder)
    app.run()
    assert not app.exception
    assert "there is no bundle" in texts(app.error)
    assert any("Path of a folder" in one.label for one in app.text_input)


def test_pictures_of_channels_are_shown_as_one_plane() -> None:
    for shape in ((4, 14, 14), (3, 14, 14), (14, 14, 3), (1, 14, 14), (14, 14)):
        assert visitor.pixels_of(np.full(shape, 9, np.uint8), 28).tolist() == [[9] * 28] * 28
