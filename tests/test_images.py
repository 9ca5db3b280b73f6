"""Pictures of any size, place, polarity and alpha come out as the same pixels."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kit.errors import BundleInvalid, PictureInvalid
from kit.images import MAX_PIXELS, to_pixels


def seven(size: int = 280, offset: tuple[int, int] = (0, 0)) -> Image.Image:
    image = Image.new("L", (size, size), 0)
    unit = size / 10
    points = [(2.5, 2.5), (7, 2.5), (4.5, 8)]
    moved = [((x * unit * 0.6) + offset[0], (y * unit * 0.6) + offset[1]) for x, y in points]
    ImageDraw.Draw(image).line(moved, fill=255, width=round(unit * 0.7), joint="curve")
    return image


def ink(image: Image.Image) -> np.ndarray:
    return to_pixels(image, pipeline="mnist-ink@1", shape=(28, 28)).astype(int)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).mean())


def test_the_result_is_centred_in_its_box() -> None:
    pixels = ink(seven())
    assert pixels.shape == (28, 28)
    rows, columns = np.nonzero(pixels > 20)
    assert max(np.ptp(rows), np.ptp(columns)) in (18, 19, 20)
    centre = (pixels * np.arange(28)).sum() / pixels.sum()
    assert abs(centre - 13.5) < 1


def test_place_does_not_matter() -> None:
    assert difference(ink(seven()), ink(seven(offset=(90, 60)))) < 2


def test_size_does_not_matter() -> None:
    assert difference(ink(seven(280)), ink(seven(700))) < 4


def test_polarity_does_not_matter() -> None:
    inverted = Image.eval(seven(), lambda value: 255 - value)
    assert difference(ink(seven()), ink(inverted)) < 1


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 30)])
def test_transparent_ground_works_with_any_ink(colour: tuple[int, int, int]) -> None:
    layered = Image.new("RGBA", seven().size, (*colour, 0))
    layered.paste(Image.new("RGBA", seven().size, (*colour, 255)), mask=seven())
    assert difference(ink(seven()), ink(layered)) < 2


@pytest.mark.parametrize("mode", ["RGB", "P", "1", "LA", "CMYK", "HSV", "YCbCr"])
def test_every_colour_mode_is_read(mode: str) -> None:
    assert difference(ink(seven()), ink(seven().convert(mode))) < 4


def test_faint_ink_counts_as_ink() -> None:
    faint = Image.eval(seven(), lambda value: 100 + value // 5)
    assert difference(ink(seven()), ink(faint)) < 3


def test_sixteen_bit_greys_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    deep = 60000 - np.asarray(seven(), np.uint16) * 200
    Image.fromarray(deep.astype(np.uint16)).save(tmp_path / "scan.png")
    found = to_pixels(tmp_path / "scan.png", pipeline="mnist-ink@1", shape=(28, 28)).astype(int)
    assert difference(ink(seven()), found) < 3


def test_corrupt_extras_and_no_pixels_end_in_words(tmp_path: Path) -> None:
    seven().save(tmp_path / "seven.png")
    data = (tmp_path / "seven.png").read_bytes()
    chunk = b"eXIf" + b"not exif at all"
    broken = data[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]
    for source in (broken, Image.new("L", (0, 0))):
        with pytest.raises(PictureInvalid):
            to_pixels(source, pipeline="mnist-ink@1", shape=(28, 28))


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_empty_picture_is_an_error(level: int) -> None:
    with pytest.raises(PictureInvalid, match="empty"):
        ink(Image.new("L", (50, 50), level))


def test_one_pixel_and_one_row_are_read_or_refused_without_a_crash() -> None:
    with pytest.raises(PictureInvalid):
        ink(Image.new("L", (1, 1), 255))
    line = Image.new("L", (30, 1), 0)
    line.putpixel((15, 0), 255)
    assert ink(line).any()


def test_a_file_its_bytes_and_the_picture_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "seven.png"
    seven().save(path)
    from_path = to_pixels(path, pipeline="mnist-ink@1", shape=(28, 28))
    from_bytes = to_pixels(path.read_bytes(), pipeline="mnist-ink@1", shape=(28, 28))
    assert np.array_equal(from_path, from_bytes)
    assert np.array_equal(from_path, ink(seven()))


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("not a picture")
    buffer = io.BytesIO()
    seven().save(buffer, "PNG")
    for source in (path, b"", buffer.getvalue()[:100], tmp_path / "missing.png", tmp_path):
        with pytest.raises(PictureInvalid):
            to_pixels(source, pipeline="mnist-ink@1", shape=(28, 28))


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("1", (12_000, MAX_PIXELS // 12_000 + 1)).save(buffer, "PNG")
    with pytest.raises(PictureInvalid, match="million"):
        to_pixels(buffer.getvalue(), pipeline="mnist-ink@1", shape=(28, 28))


def test_resize_keeps_polarity_and_fills_the_shape() -> None:
    half = Image.new("L", (100, 50), 0)
    half.paste(200, (0, 0, 50, 50))
    pixels = to_pixels(half, pipeline="resize@1", shape=(4, 4))
    assert pixels[:, 0].min() > 150
    assert pixels[:, 3].max() < 50


def test_an_unknown_pipeline_is_refused() -> None:
    with pytest.raises(BundleInvalid, match="pipeline"):
        to_pixels(seven(), pipeline="mnist-ink@9", shape=(28, 28))
