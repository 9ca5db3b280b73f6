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
from tests.helpers.bundles import overwrite

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


def press(app: AppTest, label: str) -> None:
    next(one for one in app.button if one.label == label).click().run()


def texts(elements) -> str:
    return "\n".join(str(one.value) for one in elements).replace("\\", "")


def test_a_bundle_that_is_not_there_is_said_with_what_to_do(page) -> None:
    app = page("nothing-of-that-name")
    assert "there is no bundle" in texts(app.error)
    assert not app.exception


def test_a_bundle_without_variants_says_what_to_type(page, tiny: Bundle) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text())
    (tiny.folder / "manifest.json").write_text(
        json.dumps({**manifest, "variants": [], "default": None, "baseline": None})
    )
    app = page(tiny.folder)
    assert "no exported variant" in texts(app.error)
    assert not app.exception


def test_the_first_view_invites_to_draw(page, tiny: Bundle) -> None:
    app = page(tiny.folder)
    assert not app.exception
    assert app.title[0].value == "tiny"
    assert "Draw with the mouse" in texts(app.info)
    assert "takes pixels uint8 [batch, 4, 4]" in texts(app.caption)
    assert "image classification" in texts(app.caption)


@pytest.mark.parametrize("picture", ["data:image/png;base64,%%%", "data:image/png;base64,aGVsbG8="])
def test_a_canvas_that_sends_nonsense_is_no_defect(page, digits: Bundle, picture: str) -> None:
    app = page(digits.folder, drawing={"strokes": [[[1, 2]]], "picture": picture})
    assert not app.exception
    assert app.info or "readable picture" in texts(app.warning)


def test_data_that_is_not_here_is_said_and_golden_samples_are_counted(page, tiny: Bundle) -> None:
    app = page(tiny.folder, "Accuracy")
    assert not app.exception
    assert "without labelled data" in texts(app.info)
    assert "No labelled data" in texts(app.info)
    press(app, "Count on this machine")
    assert not app.exception
    assert "the original's answers stand for them" in texts(app.caption)
    assert app.metric[0].label.replace("\\", "") == "fp32, agreement"
    assert app.metric[0].value == "100.00 %"


def test_a_damaged_variant_is_a_line_among_those_that_answer(page, digits: Bundle) -> None:
    path = digits.path(digits.variant("int8-qdq").graph)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    overwrite(path, data)
    app = page(digits.folder, source="Random")
    assert not app.exception
    assert "int8-qdq · onnxruntime" in texts(app.caption)
    assert "was altered" in texts(app.caption)
    assert app.metric[0].value in map(str, range(10))


def test_a_damaged_results_file_is_said(page, digits: Bundle) -> None:
    (digits.folder.parent / "digits-mlp.bench.json").write_text("{ no json")
    app = page(digits.folder, "Latency")
    assert not app.exception
    assert "is no JSON" in texts(app.error)
    assert "Nothing was measured" in texts(app.info)


def test_under_the_threshold_it_says_that_it_is_unsure(page, tiny: Bundle) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text())
    manifest["task"]["options"] |= {"abstain_below": 0.9999, "temperature": 100.0}
    (tiny.folder / "manifest.json").write_text(json.dumps(manifest))
    app = page(tiny.folder, source="Random")
    assert not app.exception
    assert "Unsure: the model keeps silent under 100.0 %" in texts(app.warning)
    assert "golden sample" in texts(app.caption)


def test_what_a_stranger_wrote_stays_text(page, tiny: Bundle) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text())
    manifest["original"] |= {"name": "![x](http://evil.example/x.png)"}
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


def test_pictures_of_one_channel_are_shown_grey_and_others_in_colours() -> None:
    for shape in ((1, 14, 14), (14, 14, 1), (14, 14)):
        assert visitor.pixels_of(np.full(shape, 9, np.uint8), 28).tolist() == [[9] * 28] * 28
    for shape in ((4, 14, 14), (3, 14, 14), (14, 14, 3), (14, 14, 4)):
        assert visitor.pixels_of(np.full(shape, 9, np.uint8), 28).tolist() == [[[9] * 3] * 28] * 28
    stretched = visitor.pixels_of(np.linspace(-2, 2, 9, dtype=np.float32).reshape(3, 3), 3)
    assert (stretched.min(), stretched.max()) == (0, 255)


def test_a_model_of_plain_tensors_is_shown_in_every_tab(page, duo: Bundle) -> None:
    app = page(duo.folder)
    assert not app.exception
    assert "takes ids int64 [batch, sequence], numbers float32 [batch, 3] · gives scores" in texts(app.caption)
    assert "golden sample 0" in texts(app.caption)
    assert "Compared with the original" in texts(app.markdown)
    inputs, outputs, compared = (one.value for one in app.table[:3])
    assert list(inputs.index) == ["ids", "numbers"]
    assert list(outputs.index) == ["scores", "vectors"]
    assert set(compared["output"]) == {"scores", "vectors"}
    press(app, "Another sample")
    assert "golden sample 1" in texts(app.caption)
    for tab in ("Accuracy", "Latency", "Artifact"):
        app.session_state["tab"] = tab
        app.run()
        assert not app.exception
        assert not app.error
    assert "[batch, sequence, 6]" in app.table[1].value.to_string().replace("\\", "")
    assert "'ids': np.zeros((1, 5), np.int64)" in texts(app.code)


def test_a_model_whose_task_nobody_here_knows_is_asked_by_tensors(page, duo: Bundle) -> None:
    manifest = json.loads((duo.folder / "manifest.json").read_text())
    manifest["task"] = {"name": "smell-detection@1", "options": {}}
    (duo.folder / "manifest.json").write_text(json.dumps(manifest))
    app = page(duo.folder)
    assert not app.exception
    assert "smell detection" in texts(app.caption)
    assert list(app.table[1].value.index) == ["scores", "vectors"]
    app.session_state["tab"] = "Accuracy"
    app.run()
    press(app, "Count on this machine")
    assert not app.exception
    assert app.metric[0].label == "fp32, r2"


def test_a_ready_model_is_shown_as_it_is(page, duo: Bundle) -> None:
    app = page(duo.path(duo.variant().graph))
    assert not app.exception
    assert "golden sample 0" in texts(app.caption)
    app.session_state["tab"] = "Artifact"
    app.run()
    assert not app.exception
    assert "A ready model" in texts(app.caption)
    assert not app.get("download_button")
