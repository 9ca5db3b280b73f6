"""The demo page without a browser: what it says in states that are quick to bring about."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from apps.demo import errand, places, sessions
from apps.demo.answers import Answers, _agreement
from apps.demo.pixels import pixels_of
from apps.demo.sessions import Sessions
from apps.demo.views import rows
from apps.demo.visitor import Contestant, Visitor
from kit.bench import results
from kit.bench.measure import Plan
from kit.bench.request import Request
from kit.bench.run import bench
from kit.bundle import Bundle, open_folder, pack
from kit.errors import BundleNotFound, UsageError
from tests.conftest import ROOT
from tests.helpers import onnx_files
from tests.helpers.bundles import overwrite

PAGE = ROOT / "apps" / "demo" / "page.py"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch, cache: Path):  # noqa: ARG001 - nothing goes into the user's own cache
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # Streamlit leaves the page in its place
    opened: list[AppTest] = []

    def show(path: Path | str, tab: str = "Try it", *, flags: tuple[str, ...] = (), **state: object) -> AppTest:
        monkeypatch.setattr(sys, "argv", ["page.py", *flags, str(path)])
        app = AppTest.from_file(str(PAGE), default_timeout=60)
        app.query_params["tab"] = tab
        for name, value in state.items():
            app.session_state[name] = value
        opened.append(app)
        return settled(app.run())

    yield show
    for app in opened:
        if "visitor" in app.session_state:
            app.session_state["visitor"].forget()


def settled(app: AppTest) -> AppTest:
    """Look at the page again until what it waits for is there, as its browser does."""
    while "visitor" in app.session_state and app.session_state["visitor"].errand is not None:
        app.session_state["visitor"].errand[1].wait(60)
        app.run()
    return app


def go(app: AppTest, tab: str) -> None:
    """Open another tab: it stands in the address."""
    app.query_params["tab"] = tab
    settled(app.run())


def press(app: AppTest, label: str) -> None:
    next(one for one in app.button if one.label == label).click().run()
    settled(app)


def unfold(app: AppTest) -> None:
    """Open what every contestant answered."""
    app.session_state["every answer"] = True
    settled(app.run())


def texts(elements) -> str:
    return "\n".join(str(one.value) for one in elements).replace("\\", "")


def test_a_process_that_is_started_from_the_page_does_not_draw_it() -> None:
    runpy.run_path(str(PAGE), run_name="__mp_main__")  # as multiprocessing runs the main module of whoever starts it


def test_a_bundle_that_is_not_there_is_said_with_what_to_do(page) -> None:
    app = page("nothing-of-that-name")
    assert "There is no bundle" in texts(app.error)
    assert not app.exception


def test_a_bundle_without_variants_says_what_to_type(page, tiny: Bundle) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text())
    (tiny.folder / "manifest.json").write_text(
        json.dumps({**manifest, "variants": [], "default": None, "baseline": None})
    )
    app = page(tiny.folder)
    assert "no exported variant" in texts(app.error)
    assert not app.exception


def test_the_first_view_is_an_example_that_is_already_read(page, tiny: Bundle) -> None:
    app = page(tiny.folder)
    assert not app.exception
    assert app.title[0].value == "tiny"
    assert "Image classification into 3 classes" in texts(app.caption)
    assert "1 variant of " in texts(app.caption)
    assert app.metric[0].label.replace("\\", "") == "fp32 reads"
    assert "% sure" in str(app.metric[0].delta)
    assert "answers agree" in texts(app.markdown) or "One variant answers" in texts(app.markdown)


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
    app = page(digits.folder, source="Sample")
    assert not app.exception
    assert "int8-qdq in onnxruntime does not open" in texts(app.warning)
    assert "was altered" in texts(app.warning)
    assert app.metric[0].value in map(str, range(10))


def test_a_damaged_results_file_is_said(page, digits: Bundle) -> None:
    (digits.folder.parent / "digits-mlp.bench.json").write_text("{ no json")
    app = page(digits.folder, "Latency")
    assert not app.exception
    assert "is no JSON" in texts(app.error)
    assert "Nothing was measured" in texts(app.info)


def test_results_say_whose_they_are_and_few_rounds_decide_nothing(page, tiny: Bundle) -> None:
    found = bench(open_folder(tiny.folder), Request(points=({"batch": 1},), plan=Plan(budget_seconds=0.1)))
    row = dataclasses.replace(found.rows[0], bundle="other", sha256="f" * 64)
    me = Visitor(str(tiny.folder))
    me.benches[me.path] = {"uploaded: there.json": dataclasses.replace(found, rows=(row,))}
    app = page(tiny.folder, "Latency", visitor=me)
    assert not app.exception
    assert "figures of another bundle, other, and not of tiny" in texts(app.warning)
    assert re.search(r"\*\*other\*\* \(fp32 ffffffff\) on .*: uploaded", texts(app.markdown))
    assert texts(app.subheader).startswith("Too few rounds")
    assert not app.get("vega_lite_chart")
    me.benches[me.path] = {"measured here, now": found}
    app.run()
    assert "figures of another" not in texts(app.warning)
    assert re.search(rf"\*\*tiny\*\* \(fp32 {found.rows[0].sha256[:8]}\)", texts(app.markdown))


def test_under_the_threshold_it_says_that_it_is_unsure(page, tiny: Bundle) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text())
    manifest["task"]["options"] |= {"abstain_below": 0.9999, "temperature": 100.0}
    (tiny.folder / "manifest.json").write_text(json.dumps(manifest))
    app = page(tiny.folder, source="Sample")
    assert not app.exception
    assert "Unsure: the model keeps silent under 100.0 %" in texts(app.warning)
    assert "golden sample" in texts(app.caption)


EVIL = "www.evil.example me@evil.example [x](http://evil.example) :streamlit: &#119;ww.evil.example"
MARKDOWN = (
    "markdown",
    "caption",
    "title",
    "subheader",
    "info",
    "warning",
    "success",
    "error",
    "metric",
    "button",
    "imgs",
)
MARKED = re.compile(r"(?<!\\)[&\[\]]")
LINK = re.compile(r"www\.|@evil|http:/|:streamlit:")  # these are found after escapes are undone


def drawn(app: AppTest) -> list[str]:
    """Return all that the page draws as Markdown, labels of choices and cells of tables too."""
    said = [one.proto for kind in (*MARKDOWN, "button_group", "download_button") for one in app.get(kind)]
    found = [text for one in said for text in strings(one)]
    for one in app.table:
        found += [str(cell) for cell in (*one.value.index, *one.value.to_numpy().ravel())]
    return found


def strings(message) -> list[str]:
    """Return the texts of a protocol buffer, except names of its widgets and icons."""
    found = []
    for field, value in message.ListFields():
        if field.name in {"id", "form_id", "element_id", "icon", "url", "alt"}:
            continue
        values = value if field.is_repeated else [value]
        for one in values:
            if field.type == field.TYPE_STRING:
                found.append(one)
            elif field.type == field.TYPE_MESSAGE:
                found += strings(one)
    return found


def test_what_a_stranger_wrote_stays_text_in_every_tab(page, tiny: Bundle) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text())
    manifest["original"]["name"] = EVIL
    manifest["task"]["options"]["labels"] = [EVIL, f"{EVIL} 2", f"{EVIL} 3"]
    (tiny.folder / "manifest.json").write_text(json.dumps(manifest))
    plan = Plan(budget_seconds=0.1)
    points = ({"batch": 1}, {"batch": 2})
    measured = bench(open_folder(tiny.folder), Request(points=points, plan=plan))
    results.last_path(tiny).write_text(measured.to_json())
    app = page(tiny.folder, source="Sample")
    unfold(app)
    seen = drawn(app)
    for tab in ("Accuracy", "Latency", "Artifact"):
        go(app, tab)
        if tab == "Accuracy":
            press(app, "Count on this machine")
        assert not app.exception
        seen += drawn(app)
    told = [text.replace(":color[■]", "") for text in seen if "evil" in text]
    assert len(told) > 3
    assert [text for text in told if MARKED.search(text) or LINK.search(re.sub(r"\\(.)", r"\1", text))] == []


def test_a_bundle_that_disappears_leaves_the_choice_of_another(page, tiny: Bundle) -> None:
    app = page(tiny.folder)
    shutil.rmtree(tiny.folder)
    app.run()
    assert not app.exception
    assert "There is no bundle" in texts(app.error)
    assert any("Path of a folder" in one.label for one in app.text_input)


def test_pictures_of_one_channel_are_shown_grey_and_others_in_colours() -> None:
    for shape in ((1, 14, 14), (14, 14, 1), (14, 14)):
        assert pixels_of(np.full(shape, 9, np.uint8), 28).tolist() == [[9] * 28] * 28
    for shape in ((4, 14, 14), (3, 14, 14), (14, 14, 3), (14, 14, 4)):
        assert pixels_of(np.full(shape, 9, np.uint8), 28).tolist() == [[[9] * 3] * 28] * 28
    stretched = pixels_of(np.linspace(-2, 2, 9, dtype=np.float32).reshape(3, 3), 3)
    assert (stretched.min(), stretched.max()) == (0, 255)


def test_a_model_of_plain_tensors_is_shown_in_every_tab(page, duo: Bundle) -> None:
    app = page(duo.folder)
    assert not app.exception
    assert "Tensors in, tensors out" in texts(app.caption)
    assert "golden sample 0" in texts(app.caption)
    assert " are those of the original, with errors of " in texts(app.markdown)
    unfold(app)
    assert "Compared with the original" in texts(app.markdown)
    inputs, outputs, compared = (one.value for one in app.table[:3])
    assert list(inputs.index) == ["ids", "numbers"]
    assert list(outputs.index) == ["scores", "vectors"]
    assert set(compared["output"]) == {"scores", "vectors"}
    press(app, "Another sample")
    assert "golden sample 1" in texts(app.caption)
    for tab in ("Accuracy", "Latency", "Artifact"):
        go(app, tab)
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
    assert "Smell detection" in texts(app.caption)
    assert list(app.table[1].value.index) == ["scores", "vectors"]
    go(app, "Accuracy")
    press(app, "Count on this machine")
    assert not app.exception
    assert app.metric[0].label == "fp32, r2"


def test_a_ready_model_is_shown_as_it_is(page, duo: Bundle) -> None:
    app = page(duo.path(duo.variant().graph))
    assert not app.exception
    assert "golden sample 0" in texts(app.caption)
    go(app, "Artifact")
    assert not app.exception
    assert "A ready model" in texts(app.caption)
    assert not app.get("download_button")


def open_path(app: AppTest, path: Path | str) -> None:
    next(one for one in app.text_input if "Path of a folder" in one.label).set_value(str(path)).run()
    press(app, "Open path")


@pytest.fixture
def workplace(tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a bundle under `artifacts`, one elsewhere, and a link from the former place to the latter."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny.folder, "artifacts/mine")
    tiny.folder.rename("elsewhere")
    Path("artifacts/link").symlink_to(tmp_path / "elsewhere")
    return tmp_path


def test_what_only_looks_like_an_artifact_runs_with_limits(page, workplace: Path) -> None:
    app = page("mine", "Artifact")
    assert "runs with limits" not in texts(app.caption)
    open_path(app, "artifacts/../elsewhere")
    assert not app.exception
    assert app.title[0].value == "elsewhere"
    assert "runs with limits" in texts(app.caption)
    me = app.session_state["visitor"]
    me.choose(me.place("mine"), me.look(me.place("mine")))
    assert not me.is_strange
    me.choose(me.place("link"), me.look(me.place("link")))
    assert me.path == str(workplace / "elsewhere")
    assert me.is_strange


def test_what_the_page_was_started_with_runs_without_limits_wherever_it_lies(workplace: Path) -> None:
    assert not Visitor("elsewhere").is_strange
    assert not Visitor("artifacts/link").is_strange
    assert Visitor("mine").place(str(workplace / "elsewhere")) == workplace / "elsewhere"


def test_another_visitors_folder_is_not_opened(page, tiny: Bundle) -> None:
    other = Visitor(str(tiny.folder))
    theirs = shutil.copytree(tiny.folder, other.folder / "theirs")
    assert other.place(str(theirs)) == theirs
    app = page(tiny.folder, "Artifact")
    open_path(app, theirs)
    assert "There is no bundle" in texts(app.error)
    assert app.title[0].value == "tiny"
    with pytest.raises(BundleNotFound):
        app.session_state["visitor"].place(f"{tiny.folder}/{os.path.relpath(theirs, tiny.folder)}")
    other.leave()
    assert not theirs.exists()


def test_only_artifacts_are_opened_when_told_so(page, workplace: Path) -> None:
    app = page("mine", "Artifact", flags=("--artifacts-only",))
    assert not app.exception
    assert app.text_input.len == 0
    assert app.get("file_uploader")
    me = app.session_state["visitor"]
    assert me.place("artifacts/mine") == workplace / "artifacts" / "mine"
    for path in (workplace / "elsewhere", "artifacts/link", "artifacts/../elsewhere"):
        with pytest.raises(UsageError, match="none of this page's bundles"):
            me.place(str(path))


@pytest.mark.slow
def test_a_packed_file_of_elsewhere_is_checked_before_it_is_opened(page, workplace: Path) -> None:
    packed = pack(open_folder(workplace / "elsewhere"), workplace)
    app = page("mine", "Artifact")
    open_path(app, packed)
    assert not app.exception
    assert "was checked" in texts(app.success)
    assert app.title[0].value == "elsewhere"
    assert "runs with limits" in texts(app.caption)


def test_a_model_that_never_answers_is_refused(page, tiny: Bundle, tmp_path: Path) -> None:
    app = page(tiny.folder, "Artifact", visitor=Visitor(str(tiny.folder), seconds=4))
    open_path(app, onnx_files.endless(tmp_path / "endless.onnx"))
    assert "longer than 4 s" in texts(app.error)
    assert app.title[0].value == "tiny"


def test_one_visitor_too_many_is_told_so(page, tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "everyone", Sessions(most=0))
    app = page(tiny.folder)
    assert not app.exception
    assert "Please try again in a few minutes" in texts(app.info)
    assert not app.title


def test_visitors_are_bounded_and_those_who_have_gone_make_room(tiny: Bundle) -> None:
    everyone = Sessions(most=2)
    first, second, third = (everyone.admit(name, lambda: Visitor(str(tiny.folder))) for name in ("a", "b", "c"))
    assert third is None
    first.ready()
    worker = first._worker
    assert everyone.dismiss(lambda session: session == "b", patience=1) == []
    assert everyone.dismiss(lambda session: session == "b", patience=1) == [first]
    first.leave()
    assert not worker.is_alive
    assert not first.folder.exists()
    assert everyone.holds("b", second)
    assert everyone.admit("c", lambda: Visitor(str(tiny.folder))) is not None


def test_a_row_of_words_and_numbers_keeps_their_kinds() -> None:
    assert rows._plain("41", 39) == 41
    assert rows._plain("false", True) is False
    assert rows._plain("39", "Private") == "39"
    assert rows._plain(2.5, 1) == 2.5
    assert rows._as_text(False) == "false"
    with pytest.raises(ValueError, match="could not convert"):
        rows._plain("many", 39)


def told(kind: str, *fidelities: dict[str, object] | None) -> Answers:
    """Answers of as many variants, each with one output and how it compares with the original's."""
    answers = [
        {"fidelity": [] if one is None else [{"output": "y", **one}], "outputs": [{"strange": 0}], "latency_us": 10.0}
        for one in fidelities
    ]
    who = [Contestant(place, f"v{place}", "onnxruntime", "cpu", "", "", "") for place in range(len(fidelities))]
    return Answers(kind, "the original", who, [], answers, {})


def test_what_differs_is_said_to_differ(tiny: Bundle) -> None:
    same = {"max_abs_error": 0.0, "max_rel_error": 0.0}
    half = {"max_abs_error": 150.0, "max_rel_error": 0.5, "cosine": 1.0}
    assert "those of the original, bit for bit" in _agreement(tiny, told("tensors", same, same))
    assert "with errors of 50 % at most" in _agreement(tiny, told("tensors", same, half))
    assert "v1 in onnxruntime cannot be compared" in _agreement(tiny, told("tensors", same, None))
    nothing = {"max_abs_error": math.inf, "max_rel_error": math.inf, "cosine": 1.0}
    assert "v1 in onnxruntime cannot be compared" in _agreement(tiny, told("tensors", same, nothing))
    exact = {"max_abs_error": 3.0, "is_exact": True, "agreement": 0.75}
    assert "with errors of 25 % at most" in _agreement(tiny, told("tensors", same, exact))


def test_work_that_ended_while_other_work_was_asked_for_is_not_done_again(tiny: Bundle) -> None:
    me, done = Visitor(str(tiny.folder)), []
    me.errand = ("first", errand.Errand(lambda _: done.append("first") or "one", me.forget))
    assert me.errand[1].wait(60)
    assert errand.within(me, "second", lambda _: done.append("second") or "two") == "two"
    assert errand.is_on(me, "first")
    assert errand.within(me, "first", lambda _: done.append("again") or "three") == "one"
    assert done == ["first", "second"]
    assert not errand.is_on(me, "first")
    me.leave()


def test_a_page_that_is_loaded_anew_finds_its_visitor_and_another_page_does_not(tiny: Bundle) -> None:
    everyone = Sessions(most=3)
    first = everyone.admit("a", lambda: Visitor(str(tiny.folder)), browser="mine")
    assert everyone.back("b", "mine", lambda session: session == "a") is None  # it is still in sight elsewhere
    assert everyone.back("b", "other", lambda _: False) is None
    assert everyone.back("b", "", lambda _: False) is None
    assert everyone.back("b", "mine", lambda _: False) is first
    assert everyone.holds("b", first)
    assert not everyone.holds("a", first)
    assert everyone.is_elsewhere("a", first)
    assert not everyone.is_elsewhere("b", first)


def test_the_list_of_bundles_is_read_again_only_if_a_manifest_has_changed(workplace: Path) -> None:
    known = places.listed()
    assert known["mine"] == str(workplace / "artifacts" / "mine")
    assert known["elsewhere"] == str(workplace / "elsewhere")  # by the link
    manifest = workplace / "artifacts" / "mine" / "manifest.json"
    stamp = manifest.stat()
    data = manifest.read_bytes()
    manifest.write_bytes(b" " * len(data))
    os.utime(manifest, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert "mine" in places.listed()  # by its time and size nothing has changed: it was not read
    manifest.touch()
    assert "mine" not in places.listed()
    me = Visitor(str(workplace / "elsewhere"))
    assert me.bundle() is me.bundle()
