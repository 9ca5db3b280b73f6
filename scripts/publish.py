"""Make the published bundle: the recipe `record` with three seeds on all training images, the median one exported.

    python scripts/publish.py --data-dir FOLDER [--model mlp-64-64] [--seeds 0 1 2] [--out artifacts/mnist-mlp] [--drawn FILE]
    python scripts/publish.py --data-dir FOLDER --again artifacts/mnist-mlp --known 0=99.58 1=99.56 2=99.52 [--drawn FILE]

Every seed is trained as `kit train --recipe record --seed N` does and read on the test set once, when it is exported. A run
that was stopped goes on where it was. With `--again` nothing is trained: the weights of a published bundle are exported anew,
in today's variants. The model card is written from what was measured here, and the known accuracies of the other seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import exporters
import kit
from exporters import ExportOptions, ExportReport
from kit import bundle as bundles
from kit.bundle import Bundle, Staged, Variant
from kit.choices import Precision, VariantFormat
from kit.errors import PictureInvalid
from kit.lab import data, records
from kit.lab.blueprint import Blueprint
from kit.lab.data import Dataset
from kit.lab.data.strokes import NO_DIGIT, draw_digits
from kit.lab.scores import TOP1
from kit.lab.training.loop import Epoch, Listener, train
from kit.lab.training.recipe import Recipe, recipe
from kit.lab.training.trained import save
from kit.lab.training.world import world
from kit.system.wording import percent

VARIANTS = ExportOptions(
    precisions=(Precision.FP32, Precision.FP16, Precision.INT8), formats=(VariantFormat.QDQ, VariantFormat.PIXEL)
)
"""One for every place: as it is, for GPUs, int8 for every runtime, and int8 for ONNX Runtime on a CPU."""

DRAWINGS, UNSEEN_SEED = 5_000, 12_345
"""How many drawn digits, and signs, the card tells of, and of which seed: none that anything is trained with."""

PRINTED = "ABCDEFGHJKLMNPQRTUVWXYabcdefhikmnprtuvwxy?!#%&+=*@$"
"""Letters and signs that no digit looks like."""


def main() -> None:
    """Train, export, choose the median, write the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--model", default=Recipe.model)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("artifacts/record"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("artifacts/mnist-mlp"))
    parser.add_argument("--again", type=Path, help="a published bundle to export anew")
    parser.add_argument(
        "--known", nargs="*", default=[], metavar="SEED=TOP1", help="fp32 of seeds read before, in percent"
    )
    parser.add_argument("--drawn", type=Path, help="an npz file of pictures drawn by people: canvas, label")
    asked = parser.parse_args()
    tops: dict[int, float] = {int(seed): float(top) for seed, top in (one.split("=") for one in asked.known)}
    if asked.again is not None:
        source = _again(asked.again, asked.work, asked.data_dir)
        record = records.training_record(source)
        assert record is not None  # it was published by this script
        seed = record.seed
    else:
        dataset = data.load("mnist", data_dir=asked.data_dir)
        chosen = recipe("record", dataset="mnist", model=asked.model)
        reports = {
            seed: _exported(
                dataset, dataclasses.replace(chosen, seed=seed), asked.work / f"{asked.model}-{seed}", asked.data_dir
            )
            for seed in asked.seeds
        }
        tops |= {seed: _top1(report.bundle) for seed, report in reports.items()}
        median = statistics.median_low(tops.values())
        seed = next(seed for seed, top in tops.items() if top == median)
        source = reports[seed].bundle
    with tempfile.TemporaryDirectory(dir=asked.work) as folder:
        published = _copy(source, asked.out, variants=[_staged(source, one, Path(folder)) for one in source.variants])
    drawn = _drawn(published, asked.drawn) if asked.drawn else None
    strokes = _strokes(published)
    published = bundles.attach(published, "card", _card(published, tops, seed, drawn, strokes).encode())
    print(json.dumps({"top1": tops, "published": seed, "drawn": drawn, "strokes": vars(strokes)}, indent=1))


def _exported(dataset: Dataset, chosen: Recipe, folder: Path, data_dir: Path | None) -> ExportReport:
    told = folder.with_name(f"{folder.name}.run")

    def on_epoch(epoch: Epoch) -> None:
        print(f"seed {chosen.seed}  {epoch.phase}  {epoch.epoch}/{epoch.epochs}  loss {epoch.loss:.4f}", flush=True)

    with world("auto") as here:
        listener = Listener(on_epoch=on_epoch)
        result = train(dataset, chosen, name=folder.name, world=here, run_folder=told, resume=True, listener=listener)
    if result.record.interrupted:
        raise SystemExit(130)
    bundle = save(result, folder, data_dir=data_dir)
    report = exporters.export_bundle(bundle, VARIANTS, data_dir=data_dir)
    print(f"seed {chosen.seed}: {_top1(report.bundle)}, trained in {result.record.train_seconds:.0f} s", flush=True)
    return report


def _again(published: Path, work: Path, data_dir: Path | None) -> Bundle:
    before = bundles.find(published)
    return exporters.export_bundle(_copy(before, work / f"{before.name}-again"), VARIANTS, data_dir=data_dir).bundle


def _copy(source: Bundle, folder: Path, *, variants: Sequence[Staged] = ()) -> Bundle:
    """Write the model, samples and records of a bundle into another folder, with these variants alone."""
    original, record, blueprint = source.manifest.original, records.training_record(source), Blueprint.of(source)
    assert original is not None  # it was published by this script
    assert original.weights is not None
    assert record is not None
    assert blueprint is not None
    return bundles.create(
        folder,
        name=folder.name,
        signature=source.signature,
        task=blueprint.task,
        golden=source.golden(),
        items=source.items(),
        tools=source.manifest.tools,
        original=original,
        weights=source.read(original.weights),
        attachments=records.attachments(training=record),
        variants=variants,
    )


def _staged(source: Bundle, variant: Variant, folder: Path) -> Staged:
    for ref in variant.files():
        shutil.copyfile(source.check(ref), folder / ref.file)
    return Staged(variant=variant, folder=folder)


def _top1(bundle: Bundle) -> float:
    found = bundle.variant("fp32").score(TOP1)
    assert found is not None  # MNIST is at hand
    return round(100 * found.value, 2)


def _drawn(bundle: Bundle, path: Path) -> dict[str, float]:
    """Count how many pictures drawn by people each variant reads correctly, through the bundle's picture pipeline."""
    with np.load(path) as held:
        pictures, labels = held["canvas"], held["label"]
    found = {}
    for variant in bundle.variants:
        with kit.load(bundle.folder, variant=variant.id) as engine:
            right = 0
            for picture, label in zip(pictures, labels, strict=True):
                try:
                    right += int(engine.predict(Image.fromarray(picture)).labels[0]) == int(label)
                except PictureInvalid:
                    continue
        found[variant.id] = round(100 * right / len(labels), 2)
    return {**found, "pictures": float(len(labels))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strokes:
    """What fp32 does with drawings of a seed that nothing was trained on, shares.

    Attributes:
        right: Of the digits.
        unsure: Of the signs that are no digits.
        printed: Printed letters and signs, three turns of each, that no digit looks like.
        unsure_of_printed: Of these.
    """

    right: float
    unsure: float
    printed: int
    unsure_of_printed: float


def _strokes(bundle: Bundle) -> Strokes:
    drawn = draw_digits(DRAWINGS, signs=DRAWINGS, seed=UNSEEN_SEED)
    with kit.load(bundle.folder, variant="fp32") as engine:
        found = engine.predict(drawn.images)
        printed = [bool(engine.predict(picture).unsure[0]) for picture in _printed()]
    sign = drawn.labels == NO_DIGIT
    right = (found.labels == drawn.labels)[~sign].mean()
    return Strokes(
        right=float(right),
        unsure=float(found.unsure[sign].mean()),
        printed=len(printed),
        unsure_of_printed=statistics.mean(printed),
    )


def _printed() -> list[Image.Image]:
    font, pictures = ImageFont.load_default(size=180), []
    for letter in PRINTED:
        picture = Image.new("L", (280, 280))
        ImageDraw.Draw(picture).text((140, 140), letter, fill=255, font=font, anchor="mm")
        pictures += [picture.rotate(angle) for angle in (-12, 0, 12)]
    return pictures


def _card(bundle: Bundle, tops: dict[int, float], seed: int, drawn: dict[str, float] | None, strokes: Strokes) -> str:
    blueprint, training = Blueprint.of(bundle), records.training_record(bundle)
    assert blueprint is not None  # it was trained a moment ago, or before
    assert training is not None
    (pixels,), (logits,) = bundle.signature.inputs, bundle.signature.outputs
    layers = blueprint.architecture.split("-", 1)[1]
    ids = [variant.id for variant in bundle.variants]
    seeds = ", ".join(f"{top:.2f} % (seed {one})" for one, top in sorted(tops.items()))
    rows = "\n".join(_row(variant) for variant in bundle.variants)
    settings = "\n".join(f"| `{name}` | {value} |" for name, value in training.recipe.items())
    threshold = blueprint.abstain_below
    digits, signs = (training.recipe.get(name, "0") for name in ("drawn", "signs"))
    abstain = f"below {100 * threshold:.1f} % it calls itself unsure" if threshold else "it never abstains"
    read = ""
    if drawn is not None:
        shares = ", ".join(f"{name} {drawn[name]:.2f} %" for name in ids)
        read = (
            f"\nOf {drawn['pictures']:.0f} pictures drawn by people, read through `{blueprint.pipeline}`: {shares}.\n"
        )
    return f"""# {bundle.name}

Reads one handwritten digit, 0 to 9. {blueprint.architecture}: dense layers of 784-{layers}-10 with ReLU.
Takes `{pixels.name}`, {pixels.describe()}, raw pixels, light ink on a dark ground; gives `{logits.name}`,
{logits.describe()}. A picture becomes pixels by the pipeline `{blueprint.pipeline}`. Probabilities are the softmax at
temperature {blueprint.temperature:g}; {abstain}.

## Accuracy

MNIST test set, 10,000 images; trained on all 60,000 training images. fp32: {seeds}. Published: seed {seed}, the median.

| variant | operators | top-1 | became wrong, right | loss, points, exact 95 % interval |
|---|---|---:|---:|---:|
{rows}
{read}
## Known failures

- One digit, upright: several digits, or a sign that looks like one, are read as some digit. It calls itself unsure of
  {percent(strokes.unsure, 1)} of {DRAWINGS:,} drawn signs (lone strokes, letters) of the kinds it was trained to be unsure
  of, and of {percent(strokes.unsure_of_printed, 1)} of {strokes.printed} printed letters and signs, some of
  which are among those drawn for training.
- Upside down or turned by more than about 30 degrees it is wrong.
- An upright stroke is a 1, whatever it was meant to be.
- Probabilities are calibrated on MNIST; on other pictures they are too high.

## Data

MNIST (LeCun, Cortes, Burges; CC BY-SA 3.0): 60,000 images for training, none of which is in this bundle. The golden samples are
{bundle.golden()[0].source}.

Slashed zeros, ones with a hook or a foot, barred sevens, open fours and narrow eights, which MNIST hardly has, were drawn for
training by strokes that somebody thought up (kit/lab/data/strokes.py): {digits} digits, and {signs}
signs that are none. Of {DRAWINGS:,} such digits of a seed it has not seen it reads {percent(strokes.right, 1)} correctly.

It was not trained on: digits that people drew on a screen, handwriting of other countries, photographs, several digits in one
picture, digits of other scripts.

## Recipe

`kit train --recipe record --model {blueprint.architecture} --seed {seed}`, {training.train_seconds / 60:.0f} minutes on
{training.device}. Choices were made on 10,000 training images held out; docs/log.md lists them, and every look at the test set.

| setting | value |
|---|---|
{settings}

## Licence

Weights: MIT, as kit is. MNIST's licence asks to be named where its images are passed on; they are not.
"""


def _row(variant: Variant) -> str:
    found = variant.score(TOP1)
    assert found is not None  # MNIST is at hand
    operators = " ".join(variant.needs.domains) or "portable ONNX"
    start = f"| {variant.id} | {operators} | {100 * found.value:.2f} % "
    interval = found.loss_interval
    if interval is None:
        return start + "| | |"
    low, high = (100 * end for end in interval)
    return f"{start}| {found.worse}, {found.improved} | {100 * found.loss:+.2f} [{low:.2f}, {high:.2f}] |"


if __name__ == "__main__":
    main()
