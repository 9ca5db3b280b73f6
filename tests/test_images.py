"""Pictures of any size, place, polarity and alpha come out as the same pixels, and spoilt files end in words."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kit.errors import BundleInvalid, PictureInvalid
from kit.tasks.images import MAX_PIXELS, PIPELINES, to_pixels
from kit.tasks.images.ink import stroke_width
from kit.tasks.images.pieces import label_pieces, running
from kit.tasks.images.reading import open_picture


def seven(size: int = 280, offset: tuple[int, int] = (0, 0)) -> Image.Image:
    image = Image.new("L", (size, size), 0)
    unit = size / 10
    points = [(2.5, 2.5), (7, 2.5), (4.5, 8)]
    moved = [((x * unit * 0.6) + offset[0], (y * unit * 0.6) + offset[1]) for x, y in points]
    ImageDraw.Draw(image).line(moved, fill=255, width=round(unit * 0.7), joint="curve")
    return image


def grey(levels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def ink(image: Image.Image | bytes | Path) -> np.ndarray:
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


GREY = np.asarray(seven(200, (40, 40)), np.int32)
DEEP = {
    "whole numbers, 0 to 255": GREY,
    "12 bits in 32": GREY * 16,
    "levels below 0": GREY - 1000,
    "levels of CT": GREY * 8 - 1000,
    "12 bits in 16": (GREY * 16).astype(np.uint16),
    "16 bits": (GREY * 257).astype(np.uint16),
    "16 bits with a sign": (GREY * 200 - 20_000).astype(np.int16),
    "all of 32 bits": GREY * 2**23 - 2**30,
    "float": GREY.astype(np.float32),
    "float levels of CT": (GREY * 8 - 1000).astype(np.float32),
    "the largest floats": ((GREY / 255.0 - 0.5) * 6e38).astype(np.float32),
}


def as_tiff(levels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize("pipeline", ["resize@2", "mnist-ink@3", "imagenet@2"])
@pytest.mark.parametrize("kind", DEEP)
def test_deep_greys_are_scaled_by_their_own_range(kind: str, pipeline: str) -> None:
    wanted = to_pixels(grey(GREY), pipeline=pipeline, shape=(28, 28)).astype(int)
    for source in (as_tiff(DEEP[kind]), Image.fromarray(DEEP[kind])):
        found = to_pixels(source, pipeline=pipeline, shape=(28, 28)).astype(int)
        assert np.abs(found - wanted).max() <= 1


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_numbers_that_are_not_finite_become_an_end_of_the_range(value: float) -> None:
    levels = (GREY * 8 - 1000).astype(np.float32)
    filled = GREY.copy()
    levels[:5], filled[:5] = value, 255 if value == np.inf else 0
    found = to_pixels(as_tiff(levels), pipeline="resize@2", shape=(28, 28)).astype(int)
    assert np.abs(found - to_pixels(grey(filled), pipeline="resize@2", shape=(28, 28))).max() <= 1


def test_a_picture_without_a_finite_number_says_so() -> None:
    for value in (np.nan, np.inf):
        with pytest.raises(PictureInvalid, match="holds no finite number"):
            to_pixels(as_tiff(np.full((9, 9), value, np.float32)), pipeline="resize@2", shape=(28, 28))
    assert not to_pixels(as_tiff(np.full((9, 9), 7, np.float32)), pipeline="resize@2", shape=(28, 28)).any()


def test_deep_greys_are_scaled_in_parts_that_take_little_memory() -> None:
    levels = np.arange(2048 * 2048, dtype=np.int32).reshape(2048, 2048)
    picture = Image.fromarray(levels)
    tracemalloc.start()
    found = np.asarray(open_picture(picture, own_range=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.array_equal(found, np.rint(levels * (255 / levels.max())))
    assert peak < 45 * 2**20, "all of it in float64 would be 32 MiB, and twice that while it is scaled"


def test_greys_of_the_first_versions_stay_as_they_were() -> None:
    deep = (GREY * 16).astype(np.uint16)
    old = to_pixels(as_tiff(deep), pipeline="resize@1", shape=(28, 28))
    assert np.array_equal(old, to_pixels(grey(deep // 257), pipeline="resize@1", shape=(28, 28)))


def with_chunk(name: bytes, content: bytes, *, checksum: int | None = None) -> bytes:
    """A PNG with another chunk before its pixels."""
    data = encoded(seven(), "PNG")
    checksum = zlib.crc32(name + content) if checksum is None else checksum
    return data[:33] + struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum) + data[33:]


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


SPOILT = {
    "no EXIF": with_chunk(b"eXIf", b"not exif at all"),
    "a wrong header": with_chunk(b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03"),
    "a wrong checksum": with_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0", checksum=7),
    "an unknown profile": with_chunk(b"iCCP", b"name\0\x07nothing"),
    "a text that is too long": with_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26))),
    "WebP": encoded(seven(), "WEBP", lossless=True, exif=b"Exif\0\0not exif at all"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_spoilt_extras_spoil_no_picture(kind: str, tmp_path: Path) -> None:
    (tmp_path / "seven").write_bytes(SPOILT[kind])
    for source in (SPOILT[kind], tmp_path / "seven"):
        assert np.array_equal(ink(source), ink(seven()))


def test_a_jpeg_with_spoilt_exif_data_lies_as_it_is() -> None:
    spoilt = encoded(seven(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\1\x12\0\3")
    assert np.array_equal(ink(spoilt), ink(encoded(seven(), "JPEG")))


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(PictureInvalid, match="no pixels"):
        ink(Image.new("L", (0, 0)))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_that_was_cut_is_said_to_be_truncated(form: str, share: float) -> None:
    data = encoded(seven(), form)
    with pytest.raises(PictureInvalid, match="truncated") as caught:
        ink(data[: int(share * len(data))])
    assert "always work" not in caught.value.hint
    with pytest.raises(PictureInvalid, match="truncated"):
        ink(encoded(seven(), "JPEG")[:-2])


def test_whatever_a_decoder_raises_for_bad_data_ends_in_words() -> None:
    pytest.importorskip("PIL._avif")
    data = encoded(seven(), "AVIF")
    bad = [data[:50], data[: len(data) // 2], data[:-300] + bytes(300)]
    for source in (*bad, b"\0\0\0\x18ftypavif" + bytes(40), b"II*\0" + b"\xff" * 60, b"BM" + b"\xff" * 80):
        with pytest.raises(PictureInvalid):
            ink(source)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_devices_and_sockets_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name, kind in (("pipe.png", "a pipe"), ("link.png", "a pipe"), ("zero.png", "a device")):
        with pytest.raises(PictureInvalid, match=f"{name} is {kind}"):
            ink(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as listening:
        before = Path.cwd()
        os.chdir(tmp_path)  # the whole path may be longer than a socket's can be
        try:
            listening.bind("socket.png")
        finally:
            os.chdir(before)
        with pytest.raises(PictureInvalid, match="is a socket"):
            ink(tmp_path / "socket.png")


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


# mnist-ink@2: drawings and photographs of drawings

DIGIT = ((0.2, 0.2), (0.75, 0.15), (0.8, 0.4), (0.3, 0.85), (0.8, 0.85))
"""A 2 of straight lines in the unit square."""


def drawing(
    *,
    side: int = 300,
    pen: float = 0.08,
    extent: float = 0.7,
    at: tuple[float, float] = (0.5, 0.5),
    degrees: float = 0,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """A 2; pen and extent are shares of `side`, `at` is the middle. Float64 0..1 (height, width)."""
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    width, height = size or (side, side)
    places = ((np.array(DIGIT) - 0.5) @ turn * extent * side + np.array([width * at[0], height * at[1]])) * 2
    image = Image.new("L", (2 * width, 2 * height))
    canvas, radius = ImageDraw.Draw(image), max(pen * side, 0.5)
    canvas.line([tuple(place) for place in places.tolist()], fill=255, width=max(1, round(2 * radius)))
    for x, y in places.tolist():
        canvas.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    return np.asarray(image.reduce(2), np.float64) / 255


def on_paper(ink: np.ndarray, light: np.ndarray | float = 1.0, noise: float = 4.0) -> Image.Image:
    """A pencil on white paper, as a photograph shows it."""
    return grey(225 * light * (1 - 0.6 * ink) + np.random.default_rng(0).normal(0, noise, ink.shape))


def ramp(side: int = 300) -> np.ndarray:
    """Light that falls to a third from corner to corner."""
    y, x = np.mgrid[0:side, 0:side] / side
    return 1 - 0.33 * (x + y)


def layered(ink: np.ndarray, colour: int) -> Image.Image:
    flat = Image.new("L", ink.shape[::-1], colour)
    return Image.merge("RGBA", [flat, flat, flat, grey(255 * ink)])


def turned_by_exif(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to the right to see it upright"
    picture.transpose(Image.Transpose.ROTATE_90).save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


def with_dust(ink: np.ndarray) -> Image.Image:
    levels = 230 - 190 * ink
    for y, x in np.random.default_rng(0).integers(2, 297, (20, 2)):
        levels[y : y + 3, x : x + 3] = 40
    return grey(levels)


def beside_a_table(ink: np.ndarray) -> Image.Image:
    levels = 225 * (1 - 0.6 * ink)
    levels[:, :22] = 50
    return grey(levels * ramp())


CONDITIONS: dict[str, Image.Image | bytes] = {
    "light on dark": grey(255 * drawing()),
    "dark on light": grey(235 - 200 * drawing()),
    "faint": grey(120 + 40 * drawing()),
    "thin": grey(255 * drawing(pen=0.007)),
    "thick": grey(255 * drawing(pen=0.14)),
    "tiny": grey(255 * drawing(pen=0.01, extent=0.1)),
    "huge": grey(255 * drawing(pen=0.1, extent=1.05)),
    "already 28 pixels": grey(255 * drawing(side=28, pen=0.1)),
    "in a corner": grey(255 * drawing(pen=0.02, extent=0.2, at=(0.12, 0.88))),
    "sloping left": grey(255 * drawing(degrees=-18)),
    "sloping right": grey(255 * drawing(degrees=18)),
    "wide page": grey(235 - 200 * drawing(size=(900, 300), at=(0.2, 0.5))),
    "uneven light": on_paper(drawing(), ramp()),
    "a shadow's edge": on_paper(drawing(), np.where(np.mgrid[0:300, 0:300][1] > 140, 0.5, 1.0)),
    "chalk in uneven light": grey((40 + 160 * drawing()) * ramp()),
    "dust": with_dust(drawing()),
    "beside a table": beside_a_table(drawing(extent=0.6)),
    "transparent, black": layered(drawing(), 0),
    "transparent, white": layered(drawing(), 255),
    "transparent, palette": layered(drawing(), 0).quantize(8),
    "grey and alpha": layered(drawing(), 60).convert("LA"),
    "palette": grey(255 * drawing()).convert("P"),
    "one bit": grey(255 * drawing()).convert("1"),
    "16 bits": Image.fromarray((60000 - 50000 * drawing()).astype(np.uint16)),
    "turned by EXIF": turned_by_exif(on_paper(drawing(), ramp())),
}


def read(picture: Image.Image | bytes) -> np.ndarray:
    return to_pixels(picture, pipeline="mnist-ink@2", shape=(28, 28)).astype(int)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_digit_comes_out_as_mnist_has_it(condition: str) -> None:
    pixels = read(CONDITIONS[condition])
    assert pixels.max() == 255
    assert np.median(pixels) == 0, "light ink on a dark ground"
    rows, columns = np.nonzero(pixels > 40)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 in {19, 20}
    centre = np.array([(pixels.sum(axis=1 - axis) * np.arange(28)).sum() for axis in (0, 1)]) / pixels.sum()
    assert np.abs(centre - 13.5).max() <= 1
    assert 2.3 <= stroke_width(pixels.astype(np.uint8)) <= 3.6


@pytest.mark.parametrize(
    "condition", [name for name in CONDITIONS if not name.startswith(("sloping", "thick", "already"))]
)
def test_the_same_digit_gives_nearly_the_same_pixels(condition: str) -> None:
    closest = min(  # the middle falls between two pixels, on this side or that
        difference(read(CONDITIONS["light on dark"]), np.roll(read(CONDITIONS[condition]), (down, right), (0, 1)))
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    )
    assert closest < 10


def test_polarity_leaves_no_trace() -> None:
    assert difference(read(grey(255 * drawing())), read(grey(255 - 255 * drawing()))) < 1


def test_a_bar_that_stands_apart_belongs_to_its_digit() -> None:
    apart = drawing()
    apart[:, 120:135] = 0
    pixels = read(grey(255 * apart))
    assert pixels[:, :12].any()
    assert pixels[:, 16:].any()


def test_the_pipeline_is_deterministic_and_leaves_the_picture_alone() -> None:
    picture = on_paper(drawing(), ramp())
    before = picture.tobytes()
    assert np.array_equal(read(picture), read(picture))
    assert picture.tobytes() == before


EMPTY = {
    "black": grey(np.zeros((60, 60))),
    "white": grey(np.full((60, 60), 255.0)),
    "paper": on_paper(np.zeros((300, 300)), noise=6.0),
    "paper under uneven light": on_paper(np.zeros((300, 300)), ramp()),
    "a shadow alone": on_paper(np.zeros((300, 300)), np.where(np.mgrid[0:300, 0:300][1] > 140, 0.5, 1.0)),
    "all transparent": layered(np.zeros((60, 60)), 0),
    "all opaque": layered(np.ones((60, 60)), 0),
    "one pixel": grey(np.ones((1, 1)) * 255),
}


@pytest.mark.parametrize("name", EMPTY)
def test_nothing_drawn_is_an_error_that_says_so(name: str) -> None:
    with pytest.raises(PictureInvalid, match="empty") as caught:
        read(EMPTY[name])
    assert caught.value.hint


def test_a_speck_is_no_drawing() -> None:
    levels = np.full((400, 400), 255.0)
    levels[200:203, 200:203] = 0
    with pytest.raises(PictureInvalid, match="speck"):
        read(grey(levels))


@pytest.mark.parametrize("margin", [1, 3, 8])
def test_a_picture_full_of_ink_is_refused(margin: int) -> None:
    levels = np.zeros((300, 300))
    levels[margin:-margin, margin:-margin] = 255
    with pytest.raises(PictureInvalid, match="full of ink"):
        read(grey(levels))


def test_a_line_of_pixels_is_refused() -> None:
    with pytest.raises(PictureInvalid, match="narrow"):
        read(grey(np.eye(1, 5000, 30) * 255))


def test_a_large_photograph_is_decoded_small_and_read_alike() -> None:
    small = on_paper(drawing(side=500), noise=0)
    large = small.resize((3000, 3000), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    large.save(buffer, "JPEG", quality=90)
    assert max(open_picture(buffer.getvalue(), least_side=640).size) < 1500
    assert open_picture(buffer.getvalue()).size == (3000, 3000)
    assert difference(read(small), read(buffer.getvalue())) < 3


def test_versions_stay_what_they_were() -> None:
    first = ["mnist-ink@1", "mnist-ink@2", "resize@1", "imagenet@1"]
    assert list(PIPELINES) == [*first, "mnist-ink@3", "resize@2", "imagenet@2"]
    assert not any(PIPELINES[name].own_range for name in first)
    assert hashlib.sha256(ink(seven()).astype(np.uint8).tobytes()).hexdigest()[:16] == "1f1d435355e48b4c"


def test_pieces_are_joined_over_corners_and_around_bends() -> None:
    mask = np.array([[1, 0, 1, 0, 1], [1, 0, 1, 0, 0], [0, 1, 0, 0, 1]], bool)
    assert label_pieces(mask).tolist() == [0, 0, 1, 0, 0, 0, 2]
    assert label_pieces(np.zeros((3, 3), bool)).size == 0


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_running_extremes_are_those_of_every_window(size: int) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (9, 12), dtype=np.uint8)
    before = (size - 1) // 2
    padded = np.pad(levels, (before, size - 1 - before), mode="edge")
    expected = np.lib.stride_tricks.sliding_window_view(padded, (size, size)).max(axis=(2, 3))
    assert np.array_equal(running(np.maximum, levels, size), expected)
