"""A folder of images by class: what is taken, what is refused, and that it goes the whole way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kit.bundle import find
from kit.errors import DatasetInvalid, DatasetUnavailable, UsageError
from kit.lab import data
from kit.lab.data import folder as folders
from kit.tasks.images import to_pixels
from tests.conftest import Kit

MODES = ("RGB", "L", "RGBA", "P", "1", "CMYK", "LA", "I;16")
SIZES = ((40, 40), (64, 31), (23, 90), (28, 28))


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep pixels in a folder of the test, not in the user's cache."""
    path = tmp_path / "cache" / "folders"
    monkeypatch.setattr(folders, "kept_dir", lambda: path)
    return path


def drawn(shape: str, number: int, rng: np.random.Generator) -> Image.Image:
    """Draw a white shape, filled so that classes differ in little but their form, in some size and mode."""
    width, height = SIZES[number % len(SIZES)]
    image = Image.new("L", (width, height), int(rng.integers(0, 40)))
    draw = ImageDraw.Draw(image)
    left, top = (int(rng.integers(2, size // 5 + 3)) for size in (width, height))
    right, bottom = (size - 1 - int(rng.integers(2, size // 5 + 3)) for size in (width, height))
    if shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=230)
    elif shape == "square":
        draw.rectangle((left, top, right, bottom), outline=230, width=4)
    else:
        draw.line((left, top, right, bottom), fill=230, width=4)
        draw.line((left, bottom, right, top), fill=230, width=4)
    mode = MODES[number % len(MODES)]
    if mode == "I;16":
        return Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    return image.convert(mode)


def draw_class(path: Path, shape: str, count: int, *, seed: int = 0) -> None:
    rng = np.random.default_rng((seed, *map(ord, shape)))
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = drawn(shape, number, rng)
        suffix = "jpg" if image.mode in {"RGB", "L", "CMYK"} else "png"
        image.save(path / f"{seed}-{number}.{suffix}")


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    for shape in ("square", "circle"):
        draw_class(tmp_path / "shapes" / shape, shape, 24)
    return tmp_path / "shapes"


def test_any_size_and_mode_becomes_grey_pixels_and_classes_are_sorted(shapes: Path) -> None:
    found = data.load(str(shapes))
    assert found.info.labels == ("circle", "square")
    assert found.train.images.dtype == np.uint8
    assert found.train.images.shape[1:] == found.test.images.shape[1:] == (28, 28)
    assert len(found.train) + len(found.test) == 48
    assert set(found.train.labels.tolist()) == set(found.test.labels.tolist()) == {0, 1}
    assert found.notes == ()
    assert 0 < found.info.normalization.mean < 1


def test_the_pixels_are_those_that_predicting_would_make(shapes: Path) -> None:
    found = data.load(str(shapes))
    known = {image.tobytes() for image in (*found.train.images, *found.test.images)}
    for path in shapes.glob("*/*"):
        assert to_pixels(path, pipeline=found.info.pipeline, shape=(28, 28)).tobytes() in known


def test_pictures_are_turned_as_their_exif_data_say(shapes: Path) -> None:
    upright = Image.new("RGB", (60, 40))
    ImageDraw.Draw(upright).rectangle((0, 0, 59, 9), fill="white")
    exif = Image.Exif()
    exif[0x0112] = 8  # turn it by 90 degrees
    for number in range(6):
        upright.putpixel((30, 30), (number, 0, 0))
        (shapes / "turned").mkdir(exist_ok=True)
        upright.save(shapes / "turned" / f"{number}.png", exif=exif)
    found = data.load(str(shapes))
    turned = found.train.images[found.train.labels == found.info.labels.index("turned")]
    assert turned[:, :, 0].mean() > 200, "the white edge lies on the left"


def test_progress_is_told_from_the_first_file_to_the_last(shapes: Path) -> None:
    told: list[float] = []
    data.load(str(shapes), on_share=told.append)
    assert told == sorted(told)
    assert 0 < told[0] < 0.1
    assert told[-1] == pytest.approx(1)
    assert len(told) == 2 * 48


def test_names_do_not_matter_and_contents_do(shapes: Path) -> None:
    before = data.load(str(shapes))
    assert before.name.startswith("folder:shapes@")
    for number, path in enumerate(sorted((shapes / "circle").iterdir())):
        path.rename(path.with_name(f"{(number * 7) % 24:03d}-renamed{path.suffix}"))
    renamed = data.load(str(shapes))
    assert renamed.name == before.name
    assert np.array_equal(renamed.train.images, before.train.images)
    (shapes / "circle").rename(shapes / "disc")
    assert data.load(str(shapes)).name != before.name


def test_images_that_are_added_move_no_other_out_of_its_split(shapes: Path) -> None:
    before = data.load(str(shapes))
    draw_class(shapes / "circle", "circle", 24, seed=1)
    after = data.load(str(shapes))
    assert after.name != before.name
    for split in ("train", "test"):
        kept = {image.tobytes() for image in getattr(after, split).images}
        assert all(image.tobytes() in kept for image in getattr(before, split).images)


def test_copies_of_an_image_stand_on_one_side(shapes: Path) -> None:
    for path in list((shapes / "circle").iterdir()):
        shutil.copy(path, path.with_name("copy-" + path.name))
    found = data.load(str(shapes))
    circles = [{image.tobytes() for image in split.images[split.labels == 0]} for split in (found.train, found.test)]
    assert not circles[0] & circles[1]


@pytest.mark.parametrize("test", ["test", "val"])
def test_splits_that_are_there_are_taken(tmp_path: Path, test: str) -> None:
    for part, count in (("train", 8), (test, 3)):
        for shape in ("square", "circle"):
            draw_class(tmp_path / "two" / part / shape, shape, count, seed=count)
    found = data.load(str(tmp_path / "two"))
    assert found.info.labels == ("circle", "square")
    assert (len(found.train), len(found.test)) == (16, 6)
    assert found.notes == ()


def test_a_validation_folder_beside_a_test_folder_is_trained_on_and_that_is_said(tmp_path: Path) -> None:
    for part in ("train", "val", "test", "raw"):
        for shape in ("square", "circle"):
            draw_class(tmp_path / "three" / part / shape, shape, 6, seed=len(part))
    shutil.copytree(tmp_path / "three" / "train", tmp_path / "three" / "test", dirs_exist_ok=True)
    found = data.load(str(tmp_path / "three"))
    notes = " ".join(found.notes)
    assert len(found.train) == 24
    assert "val/ counts as training data" in notes
    assert "left out" in notes
    assert "raw" in notes
    assert "of training images: the accuracy flatters" in notes


def test_what_is_no_image_is_skipped_and_counted(shapes: Path) -> None:
    (shapes / "circle" / "notes.txt").write_text("not a picture")
    (shapes / "circle" / ".hidden.png").write_text("not a picture either")
    (shapes / "readme.md").write_text("of all")
    (shapes / ".git").mkdir()
    (shapes / "__MACOSX").mkdir()
    found = data.load(str(shapes))
    assert found.info.labels == ("circle", "square")
    (note,) = found.notes
    assert note == "passed over 2 files that are no pictures of a class: readme.md, notes.txt"


def test_nested_folders_and_links_count_to_their_class(shapes: Path, tmp_path: Path) -> None:
    draw_class(shapes / "circle" / "more" / "deep", "circle", 4, seed=2)
    draw_class(tmp_path / "elsewhere", "square", 4, seed=3)
    try:
        (shapes / "square" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (shapes / "square" / "loop").symlink_to(shapes / "square", target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
    found = data.load(str(shapes))
    assert len(found.train) + len(found.test) == 48 + 8


def test_images_that_cannot_be_read_are_all_named(shapes: Path) -> None:
    good = shapes / "circle" / "0-0.jpg"
    (shapes / "circle" / "half.jpg").write_bytes(good.read_bytes()[:200])
    (shapes / "square" / "text.png").write_text("no picture")
    with pytest.raises(DatasetInvalid, match="2 images") as caught:
        data.load(str(shapes))
    assert "half.jpg" in str(caught.value)
    assert "text.png" in str(caught.value)
    assert "move them" in caught.value.hint


def test_a_link_that_leads_nowhere_is_named(shapes: Path) -> None:
    try:
        (shapes / "circle" / "gone.png").symlink_to(shapes / "nothing.png")
    except OSError:
        pytest.skip("links cannot be made here")
    with pytest.raises(DatasetInvalid, match=r"gone\.png: does not exist"):
        data.load(str(shapes))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_and_the_like_are_not_waited_for(shapes: Path) -> None:
    os.mkfifo(shapes / "circle" / "pipe.png")
    assert "pipe.png" in " ".join(data.load(str(shapes)).notes)


def test_layouts_that_cannot_be_meant_are_refused_with_what_to_do(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetInvalid, match="no subfolders") as caught:
        data.load(str(tmp_path / "empty"))
    assert "CLASS/IMAGE" in caught.value.hint
    shutil.copytree(shapes, tmp_path / "outer" / "shapes")
    with pytest.raises(DatasetInvalid, match="one class alone") as caught:
        data.load(str(tmp_path / "outer"))
    assert str(tmp_path / "outer" / "shapes") in caught.value.hint
    (shapes / "cross").mkdir()
    with pytest.raises(DatasetInvalid, match=r"cross \(0\)"):
        data.load(str(shapes))
    draw_class(shapes / "cross", "cross", 4)
    with pytest.raises(DatasetInvalid, match=r"cross \(4\)"):
        data.load(str(shapes))
    for number in range(2):
        shutil.copy(shapes / "cross" / "0-0.jpg", shapes / "cross" / f"copy{number}.jpg")
    assert len(data.load(str(shapes)).info.labels) == 3


def test_a_class_of_copies_and_unknown_test_classes_are_refused(shapes: Path, tmp_path: Path) -> None:
    (shapes / "same").mkdir()
    for number in range(6):
        shutil.copy(shapes / "circle" / "0-0.jpg", shapes / "same" / f"{number}.jpg")
    with pytest.raises(DatasetInvalid, match="'same'"):
        data.load(str(shapes))
    shutil.rmtree(shapes / "same")
    shutil.copytree(shapes, tmp_path / "split" / "train")
    draw_class(tmp_path / "split" / "test" / "cross", "cross", 3)
    with pytest.raises(DatasetInvalid, match="cross is a class that"):
        data.load(str(tmp_path / "split"))


def test_neither_a_data_set_nor_a_folder_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "file.png").write_text("")
    for wrong in ("missing", str(tmp_path / "file.png"), ""):
        with pytest.raises(UsageError) as caught:
            data.load(wrong)
        assert "fashion-mnist" in caught.value.hint
        assert "folder" in caught.value.hint


def test_names_of_folders_are_made_fit_for_files() -> None:
    assert data.short_name("mnist") == "mnist"
    assert data.short_name("some/where/My photos (2026)/") == "My-photos-2026"
    assert data.short_name("./mnist") == "mnist-folder"
    assert data.short_name("/") == "folder"
    assert data.short_name("folder:flowers@0123abcd") == "flowers"


def test_what_a_bundle_records_is_found_again_without_the_folder(shapes: Path, kept: Path) -> None:
    first = data.load(str(shapes), keep=True)
    assert data.is_here(first.name)
    shutil.rmtree(shapes)
    again = data.load(first.name)
    assert again.info == first.info
    for split in ("train", "test"):
        assert np.array_equal(getattr(again, split).images, getattr(first, split).images)
        assert np.array_equal(getattr(again, split).labels, getattr(first, split).labels)
    (file,) = kept.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DatasetUnavailable) as caught:
        data.load(first.name)
    assert "--data-dir" in caught.value.hint
    assert data.at_hand(first.name) is None


def test_where_nothing_is_kept_the_folder_can_be_named(shapes: Path, tmp_path: Path, kept: Path) -> None:
    name = data.load(str(shapes)).name
    assert not kept.exists(), "only training keeps anything"
    assert data.load("shapes", data_dir=tmp_path).name == name
    assert data.load(name, data_dir=shapes).name == name
    assert data.load(name, data_dir=tmp_path).name == name, "the folder that it lies in will do"
    moved = shapes.rename(tmp_path / "moved")
    assert data.load(name, data_dir=moved).name == name
    assert data.is_here(name, data_dir=moved)
    assert data.at_hand(name, data_dir=tmp_path) is None
    draw_class(moved / "circle", "circle", 1, seed=9)
    with pytest.raises(DatasetInvalid, match="added, removed or altered") as caught:
        data.at_hand(name, data_dir=moved)
    assert "kit train --dataset" in caught.value.hint


def test_a_renamed_folder_is_found_whatever_the_case_of_its_splits(tmp_path: Path, kept: Path) -> None:
    for part in ("Train", "Test"):
        for name in ("circle", "square"):
            draw_class(tmp_path / "shapes" / part / name, name, 20, seed=len(part))
    name = data.load(str(tmp_path / "shapes")).name
    moved = (tmp_path / "shapes").rename(tmp_path / "moved")
    assert data.load(name, data_dir=moved).name == name
    assert not kept.exists()


def test_a_name_of_before_stands_for_the_pixels_and_files_of_before(
    shapes: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faint = np.linspace(0, 4000, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(faint).save(shapes / "circle" / "faint.png")
    with monkeypatch.context() as before:
        before.setattr(folders, "PIPELINE", "resize@1")
        old = data.load(str(shapes), keep=True)
    assert data.load(str(shapes)).name != old.name
    (copy,) = kept.iterdir()
    arrays = dict(np.load(copy))
    arrays.pop("pipeline")  # as it was kept before
    np.savez(copy, **arrays)
    drawn("circle", 0, np.random.default_rng(5)).convert("L").save(shapes / "circle" / "new.pgm")
    for found in (data.load(old.name), data.load(old.name, data_dir=shapes)):
        assert (found.name, found.info.pipeline) == (old.name, "resize@1")
        assert np.array_equal(found.train.images, old.train.images)
        assert np.array_equal(found.test.images, old.test.images)
    newest = data.load(str(shapes))
    assert newest.info.pipeline == "resize@2"
    assert len(newest.train) + len(newest.test) == len(old.train) + len(old.test) + 1


def test_where_nothing_can_be_kept_that_is_said(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, where a folder should be")
    (note,) = data.load(str(shapes), keep=True).notes
    assert "--data-dir" in note


def test_golden_samples_are_said_to_be_the_folders_own(shapes: Path) -> None:
    found = data.load(str(shapes))
    split, source = data.golden_split(found)
    assert len(split) == len(found.test)
    assert source == "images of the folder shapes, licence not stated"


def test_few_images_get_many_small_steps() -> None:
    for images, batch_size in ((8, 8), (100, 8), (400, 16), (1500, 64), (4000, 128), (100_000, 256)):
        assert folders.recipe_for(images)["batch_size"] == batch_size
    assert folders.recipe_for(100)["epochs"] > folders.recipe_for(100_000)["epochs"]


def test_a_folder_goes_the_whole_way_by_the_same_commands(kit_inside: Kit, tmp_path: Path) -> None:
    for shape in ("square", "circle", "cross"):
        draw_class(tmp_path / "my shapes" / shape, shape, 60)
    here = str(tmp_path / "my shapes")
    made = kit_inside("train", "--dataset", here, "--model", "mlp-64-64", "--epochs", "15", "--out", "artifacts/forms")
    assert made.returncode == 0, made.stderr
    assert "3 classes" in made.stderr
    assert "images of the folder my-shapes, licence not stated" in made.stderr
    exported = kit_inside("export", "forms", "--precision", "int8", "--max-drop", "5")
    assert exported.returncode == 0, exported.stderr
    text = (tmp_path / "artifacts" / "forms" / "manifest.json").read_text()
    assert str(tmp_path) not in text
    bundle = find(tmp_path / "artifacts" / "forms")
    assert bundle.manifest.task.options["labels"] == ["circle", "cross", "square"]
    assert bundle.manifest.task.options["pipeline"] == "resize@2"
    score = bundle.variant("int8-qdq").score("top-1")
    assert score is not None
    assert score.value > 0.8
    benched = kit_inside("bench", "forms", "--provider", "cpu", "--budget", "300ms", "--batch-size", "1")
    assert benched.returncode == 0, benched.stderr
    assert "counted now" in benched.stdout
    ImageDraw.Draw(picture := Image.new("RGB", (300, 200), "black")).ellipse((30, 20, 270, 180), fill="white")
    picture.save(tmp_path / "picture.png")
    answer = kit_inside("predict", "forms", "picture.png", "--json")
    assert json.loads(answer.stdout)[0]["label"] == "circle"
    assert kit_inside("verify", "forms").returncode == 0


@pytest.mark.slow
def test_bench_shows_the_manifests_score_if_the_images_are_not_here(kit_inside: Kit, shapes: Path, kept: Path) -> None:
    assert kit_inside("train", "--dataset", str(shapes), "--model", "mlp-64-64", "--epochs", "2").returncode == 0
    shutil.rmtree(kept)
    refused = kit_inside("export", "my-shapes-mlp-64-64", "--precision", "int8")
    assert refused.returncode == 2
    assert "--data" in refused.stderr, "there is nothing to calibrate with"
    exported = kit_inside("export", "my-shapes-mlp-64-64", "--data-dir", str(shapes))
    assert exported.returncode == 0, exported.stderr
    line = ("bench", "my-shapes-mlp-64-64", "--provider", "cpu", "--budget", "300ms", "--batch-size", "1")
    assert "* from the manifest" in kit_inside(*line).stdout
    assert "counted now" in kit_inside(*line, "--data-dir", str(shapes)).stdout
