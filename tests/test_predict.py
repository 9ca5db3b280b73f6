"""`kit predict`: whatever a bundle's task reads, in every form, as it comes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exporters.pipeline import export_original
from kit.bundle import Bundle
from kit.tensors import Signature, TensorSpec
from tests import graphs
from tests.conftest import Kit
from tests.helpers.originals import OnnxOriginal, graph


@pytest.fixture
def pictures(tiny: Bundle, tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, pixels in enumerate(tiny.golden()[0].inputs["pixels"][:3]):
        Image.fromarray(pixels).resize((20, 16)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def tensors(duo: Bundle, tmp_path: Path) -> Path:
    np.savez(tmp_path / "tensors.npz", **duo.golden()[0].inputs)
    return tmp_path / "tensors.npz"


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_a_folder_is_answered_in_every_form(kit_inside: Kit, tiny: Bundle, pictures: Path, form: str) -> None:
    found = kit_inside("predict", str(tiny.folder), str(pictures), f"--{form}")
    assert found.returncode == 0, found.stderr
    labels = ["left", "right", "none"]
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(found.stdout)))
        shares = [float(rows[0][f"p({label})"]) for label in labels]
    else:
        rows = json.loads(found.stdout) if form == "json" else [json.loads(line) for line in found.stdout.splitlines()]
        shares = list(rows[0]["probabilities"].values())
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert rows[0]["label"] == labels[int(np.argmax(shares))]


@pytest.mark.parametrize("form", ["--json", "--jsonl", "--csv"])
def test_what_can_be_answered_is_and_the_rest_is_reported(
    kit_inside: Kit, tiny: Bundle, pictures: Path, form: str
) -> None:
    (pictures / "0-broken.png").write_text("no picture")
    found = kit_inside("predict", str(tiny.folder), str(pictures), "missing.png", form)
    assert found.returncode == 4
    if form == "--csv":
        rows = list(csv.DictReader(io.StringIO(found.stdout)))
    else:
        rows = json.loads(found.stdout) if form == "--json" else list(map(json.loads, found.stdout.splitlines()))
    assert [bool(row.get("error")) for row in rows] == [True, False, False, False, True]
    assert "0-broken.png" in found.stderr
    assert "missing.png" in found.stderr


def test_the_only_item_fails_as_the_command_does(kit_inside: Kit, tiny: Bundle, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no picture")
    found = kit_inside("predict", str(tiny.folder), "broken.png", "--json")
    assert (found.returncode, found.stdout) == (4, "")
    assert "no readable picture" in found.stderr


def test_a_picture_comes_by_stdin(tiny: Bundle, pictures: Path) -> None:
    found = subprocess.run(
        [str(Path(sys.executable).with_name("kit")), "predict", str(tiny.folder), "-"],
        input=(pictures / "0.png").read_bytes(),
        capture_output=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert b"%" in found.stdout


def test_tensors_come_and_go_as_npz(kit_inside: Kit, duo: Bundle, tensors: Path, tmp_path: Path) -> None:
    found = kit_inside("predict", str(duo.folder), str(tensors), "-o", "answers.npz")
    assert found.returncode == 0, found.stderr
    expected = duo.golden()[0].expected
    assert expected is not None
    with np.load(tmp_path / "answers.npz") as answers:
        assert sorted(answers.files) == ["scores", "vectors"]
        assert np.allclose(answers["vectors"], expected["vectors"], atol=1e-5)
    lines = kit_inside("predict", str(duo.folder), str(tensors), str(tensors), "-o", "both.npz", "--jsonl").stdout
    assert len(lines.splitlines()) == 2
    with np.load(tmp_path / "both.npz") as answers:
        assert len(answers["scores"]) == 2 * len(expected["scores"])


def test_a_ready_model_takes_tensors(kit_inside: Kit, duo: Bundle, tensors: Path) -> None:
    model = duo.path(duo.variant().graph)
    found = kit_inside("predict", str(model), str(tensors))
    assert found.returncode == 0, found.stderr
    assert "scores [" in found.stdout
    record = json.loads(kit_inside("predict", str(model), str(tensors), "--json").stdout)[0]
    assert np.array(record["vectors"]).ndim == 3


def test_the_first_answer_does_not_wait_for_the_second_item(tiny: Bundle, pictures: Path) -> None:
    command = [str(Path(sys.executable).with_name("kit")), "predict", str(tiny.folder), str(pictures / "0.png"), "-"]
    with subprocess.Popen([*command, "--jsonl"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert json.loads(running.stdout.readline())["file"].endswith("0.png")
        running.stdin.write((pictures / "1.png").read_bytes())
        running.stdin.close()
        assert json.loads(running.stdout.readline())["file"] == "-"
    assert running.returncode == 0


def test_a_folder_is_read_by_the_rules_of_training_and_the_rest_is_said(
    kit_inside: Kit, tiny: Bundle, pictures: Path
) -> None:
    picture = Image.open(pictures / "0.png")
    for name in ("3.ppm", "4.tga", "5.jfif", "6.jpe"):
        picture.save(pictures / name, {".ppm": "PPM", ".tga": "TGA"}.get(Path(name).suffix, "JPEG"))
    (pictures / "e.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (pictures / "notes.txt").write_text("x")
    (pictures / "._0.png").write_bytes(b"\0\5\x16\7")
    (pictures / ".DS_Store").write_bytes(b"x")
    (pictures / "thumbs.png").mkdir()
    os.mkfifo(pictures / "pipe.png")
    found = kit_inside("predict", str(tiny.folder), str(pictures), "--jsonl")
    assert found.returncode == 0, found.stderr
    names = [Path(json.loads(line)["file"]).name for line in found.stdout.splitlines()]
    assert names == ["0.png", "1.png", "2.png", "3.ppm", "4.tga", "5.jfif", "6.jpe"]
    assert "passed over 3 files that are no pictures kit reads: e.heic, notes.txt, pipe.png" in found.stderr
    assert "passed over 1 folder beside the pictures: thumbs.png" in found.stderr
    (pictures / "gone.png").symlink_to("nowhere.png")
    found = kit_inside("predict", str(tiny.folder), str(pictures), "--jsonl")
    assert found.returncode == 4
    assert "gone.png does not exist" in found.stderr


@pytest.mark.parametrize("kind", ["pictures", "tensors"])
def test_a_closed_stdin_is_one_message(tiny: Bundle, duo: Bundle, kind: str) -> None:
    bundle = {"pictures": tiny, "tensors": duo}[kind]
    words = [str(Path(sys.executable).with_name("kit")), "predict", str(bundle.folder), "-"]
    found = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *words], capture_output=True, text=True, check=False)
    assert found.returncode == 4, found.stderr
    assert "Traceback" not in found.stderr
    assert found.stderr.count("Error") == 1


def test_texts_are_given_on_the_command_line_and_in_files(kit_inside: Kit, reviews: Path, tmp_path: Path) -> None:
    found = kit_inside("predict", str(reviews), "--text", "a nice film", "--text", "dull", "--jsonl")
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert [(row["file"], row["label"]) for row in rows] == [("a nice film", "nice"), ("dull", "dull")]
    (tmp_path / "films.csv").write_text("text,other\na dull film,1\nnice,2\n")
    found = kit_inside("predict", str(reviews), "films.csv", "a nice film", "--csv")
    rows = list(csv.DictReader(io.StringIO(found.stdout)))
    assert [row["label"] for row in rows] == ["dull", "nice", "nice"]
    assert rows[0]["file"] == "films.csv:1"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("missing.png",), 4, "no file, folder or bundle"),
        (("BUNDLE",), 2, "nothing to predict"),
        (("BUNDLE", "--text", "a nice film"), 2, "reads no texts"),
        (("BUNDLE", "x.png", "-o", "answers.txt"), 2, "are written as .jsonl, .csv, .parquet or .npz"),
        (("BUNDLE", "x.png", "--csv", "--json"), 2, "exclude each other"),
        (("BUNDLE", "x.png", "--device-id", "1"), 2, "change nothing on the CPU"),
    ],
)
def test_what_cannot_be_asked_is_one_message(
    kit_inside: Kit, tiny: Bundle, arguments: tuple[str, ...], code: int, words: str
) -> None:
    found = kit_inside("predict", *(str(tiny.folder) if word == "BUNDLE" else word for word in arguments))
    assert found.returncode == code, found.stderr
    assert words in found.stderr
    assert "Traceback" not in found.stderr


def test_answers_are_joined_along_the_batch_wherever_it_stands_and_stacked_without_one(
    kit_inside: Kit, tmp_path: Path
) -> None:
    for name, shape, batch, wanted in (("rows", (3, "batch"), "batch", (3, 9)), ("alone", (5,), None, (3, 5))):
        signature = Signature(
            inputs=(TensorSpec(name="x", dtype="float32", shape=shape),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=shape),),
            batch=batch,
        )
        model = graph([graphs.node("Relu", "x", "y")], {}, signature)
        export_original(OnnxOriginal(model, signature), out=tmp_path / name)
        sizes = [size if isinstance(size, int) else 3 for size in shape]
        each = [np.random.default_rng(seed).random(sizes, np.float32) for seed in range(3)]
        for number, x in enumerate(each):
            np.savez(tmp_path / f"{number}.npz", x=x)
        found = kit_inside("predict", str(tmp_path / name), "0.npz", "1.npz", "2.npz", "-o", "answers.npz")
        assert found.returncode == 0, found.stderr
        expected = np.concatenate(each, axis=1) if name == "rows" else np.stack(each)
        with np.load(tmp_path / "answers.npz") as answers:
            assert answers["y"].shape == wanted
            assert np.array_equal(answers["y"], expected)
