"""Pictures become what a model takes, pixel by pixel as torchvision makes them, and data sets say what was passed over."""

from __future__ import annotations

import dataclasses
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kit.bundle.manifest import TaskRef
from kit.errors import BadInput, BundleInvalid, DatasetInvalid, PictureInvalid, UsageError
from kit.tasks import inputs
from kit.tasks.image import ImageClassification
from kit.tasks.images import to_pixels
from kit.tasks.images.crop import Crop
from kit.tasks.registry import open_task
from kit.tensors import Axis, Signature, TensorSpec

LABELS = ("cat", "dog")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photograph(width: int = 301, height: int = 203, mode: str = "RGB") -> Image.Image:
    """Colours and edges of every frequency."""
    y, x = np.mgrid[0:height, 0:width]
    rng = np.random.default_rng(0)
    layers = [127 + 120 * np.sin(x / (2 + 5 * k) + y / (9 - 2 * k)) for k in range(4)]
    pixels = np.stack(layers, axis=-1) + rng.normal(0, 8, (height, width, 4))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).convert(mode)


def signature(shape: tuple[int | str, ...], dtype: str = "float32", classes: int = 2) -> Signature:
    return Signature(
        inputs=(TensorSpec(name="x", dtype=dtype, shape=shape),),
        outputs=(TensorSpec(name="scores", dtype="float32", shape=(shape[0], classes)),),
        batch="batch" if shape[0] == "batch" else None,
    )


def task(**options: Any) -> ImageClassification:
    return ImageClassification(**{"labels": LABELS, "pipeline": "imagenet@1", "mean": MEAN, "std": STD, **options})


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(301, 203), (203, 301), (224, 224), (60, 500), (100, 90), (256, 256), (1024, 683)])
def test_imagenet_makes_the_pixels_of_torchvision(size: tuple[int, int], interpolation: str) -> None:
    from torchvision.transforms import v2
    from torchvision.transforms.functional import InterpolationMode

    picture = photograph(*size)
    expected = v2.Compose([v2.Resize(256, getattr(InterpolationMode, interpolation.upper())), v2.CenterCrop(224)])
    crop = Crop(resize=256, interpolation=interpolation)
    pixels = to_pixels(picture, pipeline="imagenet@1", shape=(224, 224, 3), channels_last=True, crop=crop)
    assert np.array_equal(pixels, np.asarray(expected(picture)))


@pytest.mark.parametrize("size", [(301, 203), (40, 50), (224, 100)])
def test_a_picture_smaller_than_the_cut_is_padded_as_by_torchvision(size: tuple[int, int]) -> None:
    from torchvision.transforms import v2

    picture = photograph(*size)
    expected = v2.Compose([v2.Resize(100), v2.CenterCrop((224, 161))])
    pixels = to_pixels(picture, pipeline="imagenet@1", shape=(3, 224, 161), crop=Crop(resize=100))
    assert np.array_equal(pixels, np.asarray(expected(picture)).transpose(2, 0, 1))


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
def test_a_share_to_cut_out_means_what_timm_means_by_it(crop_pct: float) -> None:
    from torchvision.transforms import v2

    picture = photograph()
    expected = v2.Compose([v2.Resize(int(np.floor(224 / crop_pct))), v2.CenterCrop(224)])
    pixels = to_pixels(picture, pipeline="imagenet@1", shape=(3, 224, 224), crop=Crop(crop_pct=crop_pct))
    assert np.array_equal(pixels, np.asarray(expected(picture)).transpose(2, 0, 1))


def test_a_pair_of_sizes_is_scaled_to_whatever_the_proportions() -> None:
    from torchvision.transforms import v2

    picture = photograph()
    crop = Crop(resize=(224, 224), interpolation="bicubic")
    expected = v2.Resize((224, 224), v2.InterpolationMode.BICUBIC)(picture)
    pixels = to_pixels(picture, pipeline="imagenet@1", shape=(3, 224, 224), crop=crop)
    assert np.array_equal(pixels, np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "1"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_becomes_as_many_channels_as_the_model_has(mode: str, channels: int) -> None:
    from torchvision.transforms import v2

    picture = photograph(mode="RGB" if mode == "CMYK" else mode).convert(mode)
    wanted = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    expected = np.asarray(v2.Compose([v2.Resize(64), v2.CenterCrop(56)])(picture.convert(wanted)))
    pixels = to_pixels(picture, pipeline="imagenet@1", shape=(channels, 56, 56), crop=Crop(resize=64))
    assert np.array_equal(pixels, expected.reshape(56, 56, channels).transpose(2, 0, 1))


def test_the_values_are_those_of_torchvision_if_the_graph_does_not_normalize() -> None:
    import torch
    from torchvision.transforms import v2

    picture = photograph()
    steps = [v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]
    expected = v2.Compose([*steps, v2.Normalize(MEAN, STD)])(picture)
    own = task(resize=256, normalize_in_graph=False)
    own.check(signature(("batch", 3, 224, 224)))
    assert own.prologue is None
    values = own.encode([picture])["x"][0]
    assert values.dtype == np.float32
    assert np.allclose(values, expected.numpy(), atol=1e-6)


def test_the_prologue_of_raw_pixels_is_the_same_arithmetic() -> None:
    own = task(normalize_in_graph=True)
    raw = own.signature((3, 224, 224))
    pixels = own.encode([photograph()])[raw.inputs[0].name].astype(np.float64)
    floats = task(normalize_in_graph=False)
    floats.check(signature(("batch", 3, 224, 224)))
    prologue = own.prologue
    assert prologue is not None
    scale, shift = (np.array(one).reshape(-1, 1, 1) for one in (prologue.scale, prologue.shift))
    assert np.allclose(pixels * scale + shift, floats.encode([photograph()])["x"], atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        (("batch", 28, 20), (1, 28, 20)),
        (("batch", 1, 28, 20), (1, 1, 28, 20)),
        (("batch", 28, 20, 1), (1, 28, 20, 1)),
        (("batch", 3, 28, 20), (1, 3, 28, 20)),
        (("batch", 28, 20, 3), (1, 28, 20, 3)),
        (("batch", 4, 28, 20), (1, 4, 28, 20)),
        ((1, 3, 28, 20), (1, 3, 28, 20)),
    ],
)
def test_pictures_lie_as_the_model_has_them(shape: tuple[int | str, ...], found: tuple[int, ...]) -> None:
    own = task(pipeline="resize@1", mean=(0.5,), std=(0.2,))
    own.check(signature(shape, "uint8"))
    grey, red = Image.new("L", (40, 30), 80), Image.new("RGB", (40, 30), (255, 0, 0))
    assert own.encode([grey])["x"].shape == found
    assert own.encode([red])["x"].any()


def test_both_ends_could_be_channels_and_an_option_decides() -> None:
    first, last = task(pipeline="resize@1"), task(pipeline="resize@1", channels_last=True)
    for one in (first, last):
        one.check(signature(("batch", 3, 9, 3), "uint8"))
    red = Image.new("RGB", (9, 9), (255, 0, 0))
    assert first.encode([red])["x"][0, 0].all()
    assert last.encode([red])["x"][0, ..., 0].all()


def test_the_colours_may_come_in_the_other_order() -> None:
    own = task(colours="BGR", resize=32)
    own.check(signature(("batch", 3, 28, 28), "uint8"))
    assert own.encode([Image.new("RGB", (40, 40), (255, 0, 0))])["x"][0, 2].all()


def test_height_and_width_that_the_model_leaves_open_are_an_option() -> None:
    open_sizes = signature(("batch", 3, "height", "width"), "uint8")
    with pytest.raises(UsageError, match="any height and width") as caught:
        task().check(open_sizes)
    assert "size=" in caught.value.hint
    own = task(size=(32, 48))
    own.check(open_sizes)
    assert own.encode([photograph()])["x"].shape == (1, 3, 32, 48)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": ("cat", "cat")}, "two classes are called 'cat'"),
        ({"labels": ("cat", " ")}, "label 1 is blank"),
        ({"labels": ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}")}, "two classes"),
        ({"labels": ("cat", "\N{ZERO WIDTH SPACE}")}, "label 1 is blank"),
        ({"labels": ("cat", "\N{HANGUL FILLER} ")}, "label 1 is blank"),
        ({"labels": ("cat", "cat\N{ZERO WIDTH JOINER}")}, "two classes are called 'cat'"),
        ({"labels": ("cat", "\x1b[31mdog")}, "label 1 cannot be printed"),
        ({"labels": ("cat\n", "dog")}, "label 0 cannot be printed"),
        ({"std": (0.0,)}, "std must be positive"),
        ({"mean": (), "std": (0.1,)}, "must both be numbers"),
        ({"temperature": 0.0}, "temperature"),
        ({"abstain_below": 2.0}, "probability"),
        ({"interpolation": "magic"}, "unknown interpolation"),
        ({"crop_pct": 0.0}, "cannot be scaled"),
        ({"colours": "GBR"}, "colours"),
        ({"scores": "ranks"}, "scores"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        task(**options)


def test_signs_that_join_letters_belong_to_a_name() -> None:
    labels = ("می\N{ZERO WIDTH NON-JOINER}خواهم", "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}")
    assert task(labels=labels).labels == labels


def test_answers_that_are_no_numbers_are_unsure() -> None:
    own = task()
    own.signature((3, 8, 8))
    found = own.decode({"logits": np.array([[0.0, np.nan], [0.0, 9.0]], np.float32)}, {})
    assert found.unsure.tolist() == [True, False]
    assert [record["unsure"] for record in found.records()] == [True, False]


@pytest.mark.parametrize(
    ("shape", "dtype", "classes", "words"),
    [
        (("batch", 3, 28, 28), "float32", 5, "2 labels do not fit the output"),
        (("batch", 16), "float32", 2, "cannot have the shape"),
        (("batch", 7, 28, 28), "float32", 2, "cannot have the shape"),
        (("batch", 3, 28, 28), "int64", 2, "uint8 or float"),
        (("batch", 4, 28, 28), "float32", 2, "mean has 3 values for 4 channels"),
    ],
)
def test_a_model_that_takes_no_pictures_is_refused(
    shape: tuple[int | str, ...], dtype: str, classes: int, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        task().check(signature(shape, dtype, classes))


def test_a_pipeline_for_digits_makes_no_colours() -> None:
    with pytest.raises(UsageError, match="makes grey pictures"):
        task(pipeline="mnist-ink@2").check(signature(("batch", 3, 28, 28)))


def test_it_opens_again_from_what_a_manifest_holds() -> None:
    own = task(resize=256, interpolation="bicubic", temperature=1.5, abstain_below=0.4, scores="probabilities")
    given = own.signature((3, 64, 64))
    opened = open_task(TaskRef(name=own.name, options=own.options()), {}, given)
    assert isinstance(opened, ImageClassification)
    assert opened.options() == own.options()
    assert np.array_equal(opened.encode([photograph()])["pixels"], own.encode([photograph()])["pixels"])
    assert dataclasses.replace(own, temperature=2.0).options()["temperature"] == 2.0
    with pytest.raises(BundleInvalid, match="not image-classification@7"):
        open_task(TaskRef(name="image-classification@7", options=own.options()), {}, given)
    with pytest.raises(BundleInvalid, match="does not take these options"):
        open_task(TaskRef(name=own.name, options={**own.options(), "magic": 1}), {}, given)
    with pytest.raises(BundleInvalid, match="unknown picture pipeline"):
        open_task(TaskRef(name=own.name, options={**own.options(), "pipeline": "imagenet@9"}), {}, given)


def test_probabilities_of_the_model_itself_are_taken_as_they_are() -> None:
    own = task(scores="probabilities")
    own.signature((3, 8, 8))
    shares = np.array([[0.25, 0.75]], np.float16)
    found = own.decode({"logits": shares}, {})
    assert found.probabilities.tolist() == [[0.25, 0.75]]
    assert found.names == ("dog",)


@pytest.fixture
def grey() -> ImageClassification:
    own = ImageClassification(labels=("café", "thé"))
    own.signature((8, 8))
    return own


def _pictures(folder: Path, *names: str) -> None:
    for place, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (20, 20), 10 * place).save(path)


def test_a_folder_by_class_is_labelled_by_the_names_of_its_folders(grey: ImageClassification, tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "café")  # as macOS writes it
    _pictures(tmp_path, f"{decomposed}/a.png", f"{decomposed}/deep/b.PNG", "thé/c.jpg", "lait/d.png", "e.png")
    _pictures(tmp_path, "__MACOSX/thé/._c.png", "thé/.hidden.png")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "thé" / "notes.txt").write_text("x")
    (tmp_path / "thé" / "broken.png").write_text("x")
    (samples,) = grey.samples(tmp_path, grey.signature((8, 8)))
    assert samples.targets is not None
    assert samples.targets["labels"].tolist() == [0, 0, 1]
    assert samples.inputs["pixels"].shape == (3, 8, 8)
    assert "passed over 3 files that are no pictures of a class: e.png, d.png, notes.txt" in samples.source
    assert "passed over 1 file that cannot be read: broken.png" in samples.source


def test_a_folder_without_classes_has_no_labels(grey: ImageClassification, tmp_path: Path) -> None:
    _pictures(tmp_path, "a.png", "b.png")
    (samples,) = grey.samples(tmp_path, grey.signature((8, 8)))
    assert samples.targets is None
    assert len(samples.inputs["pixels"]) == 2


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "holds no pictures"),
        (("readme.txt",), "holds no pictures"),
        (("cat/a.png", "dog/b.png"), "is called as a label"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused(
    grey: ImageClassification, tmp_path: Path, names: tuple[str, ...], words: str
) -> None:
    _pictures(tmp_path, *(name for name in names if name.endswith(".png")))
    for name in names:
        if name.endswith(".txt"):
            (tmp_path / name).write_text("x")
    with pytest.raises(DatasetInvalid, match=words):
        grey.samples(tmp_path, grey.signature((8, 8)))


def test_arrays_of_pictures_are_read_with_labels_by_name_or_number(grey: ImageClassification, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=pixels, labels=[1, 0, 1])
    np.savez(tmp_path / "b.npz", pixels=np.kron(pixels, np.ones((3, 3), np.uint8)), y=["thé", "café", "thé"])
    (same,) = grey.samples(tmp_path / "a.npz", grey.signature((8, 8)))
    (larger,) = grey.samples(tmp_path / "b.npz", grey.signature((8, 8)))
    assert np.array_equal(same.inputs["pixels"], pixels)
    assert same.targets is not None
    assert larger.targets is not None
    assert same.targets["labels"].tolist() == larger.targets["labels"].tolist() == [1, 0, 1]
    assert larger.inputs["pixels"].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"other": np.zeros((3, 8, 8), np.uint8)}, "holds no pictures"),
        ({"images": np.zeros((3, 8, 8), np.uint8), "labels": np.zeros(2)}, "for 3 pictures"),
        ({"images": np.zeros((1, 8, 8), np.uint8), "labels": np.array([5])}, "the model has no label 5"),
        ({"images": np.zeros((1, 8, 8), np.uint8), "labels": np.array([0.5])}, "the model has no label 0.5"),
        ({"images": np.zeros((1, 8, 8), np.float32), "labels": np.array([0])}, "pixels"),
    ],
)
def test_arrays_that_are_no_pictures_of_the_model_are_refused(
    grey: ImageClassification, tmp_path: Path, arrays: dict[str, np.ndarray], words: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DatasetInvalid, match=words):
        grey.samples(tmp_path / "a.npz", grey.signature((8, 8)))


@pytest.mark.parametrize("kind", ["folder", "arrays", "made up"])
def test_raw_items_become_the_same_pixels_everywhere(grey: ImageClassification, tmp_path: Path, kind: str) -> None:
    _pictures(tmp_path / "folder", "thé/a.png", "thé/b.png", "café/c.png")
    np.savez(tmp_path / "arrays.npz", images=np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype=np.uint8))
    source = {"folder": tmp_path / "folder", "arrays": tmp_path / "arrays.npz", "made up": None}[kind]
    raw = grey.raw(source, 3)
    assert len(raw) == 3
    assert all(isinstance(one, str) for one in raw)
    assert grey.encode([grey.item(one) for one in raw])["pixels"].shape == (3, 8, 8)
    with pytest.raises(BundleInvalid):
        grey.item("no base64!")


def test_the_snippet_runs_with_onnx_runtime_alone(tiny: Any, tmp_path: Path, python: Any) -> None:
    from kit.tasks.registry import task_of

    Image.new("RGB", (4, 4), (9, 90, 200)).save(tmp_path / "picture.png")
    path = tiny.path(tiny.variant().graph)
    found = python(task_of(tiny).snippet(str(path)), cwd=tmp_path)
    assert found.stdout.strip() in {"left", "right", "none"}, found.stderr


def test_a_model_without_a_pipeline_takes_arrays_alone() -> None:
    own = ImageClassification(labels=LABELS, pipeline="")
    own.signature((3, 8, 8))
    assert own.encode([np.zeros((3, 8, 8), np.uint8)])["pixels"].shape == (1, 3, 8, 8)
    assert own.raw(None, 3) == []
    with pytest.raises(UsageError, match="takes pixels"):
        own.encode([photograph()])


def test_an_unreadable_picture_is_named() -> None:
    own = task()
    own.signature((3, 8, 8))
    with pytest.raises(PictureInvalid, match=r"missing\.png"):
        own.encode(["missing.png"])


def test_a_model_without_a_batch_takes_one_picture() -> None:
    own = task()
    own.check(dataclasses.replace(signature((1, 3, 8, 8)), axes={"unused": Axis()}))
    with pytest.raises(UsageError, match="one item in a call"):
        own.encode([photograph(), photograph()])


@pytest.mark.parametrize(("shape", "count"), [((28, 28, 1), 2), ((1, 28, 28), 2), ((28, 28, 3), 2), ((28, 28, 5), 0)])
def test_arrays_of_any_layout_become_raw_pictures(tmp_path: Path, shape: tuple[int, ...], count: int) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros((2, *shape), np.uint8))
    own = ImageClassification(labels=LABELS)
    own.signature((28, 28))
    assert len(own.raw(tmp_path / "a.npz", 5)) == count


def test_the_output_with_the_scores_is_named() -> None:
    own = task()
    assert own.output == ""
    own.signature((3, 8, 8))
    assert own.output == "logits"


def test_stdin_is_bounded(grey: ImageClassification, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "MOST_BYTES", 2**21)
    with Path("/dev/zero").open() as endless:
        monkeypatch.setattr(sys, "stdin", endless)
        with pytest.raises(BadInput, match="more than 2 MiB"):
            next(grey.read("-"))
