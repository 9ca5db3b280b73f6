"""`kit train`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apps.cli import complete, options
from kit.lab.training import recipe as recipes
from kit.system.wording import percent

if TYPE_CHECKING:
    from apps.cli.render import Update
    from kit.bundle import Bundle
    from kit.lab.data import Dataset
    from kit.lab.training.loop import Epoch, Listener, TrainingResult
    from kit.lab.training.recipe import Recipe
    from kit.lab.training.world import World

DEVICES = ("auto", "cpu", "cuda")
DATASETS = ("mnist", "fashion-mnist", "digits")
MODELS = ("mlp-512-256-128", "mlp-64-64", "cnn-16-48-96")


@click.command()
@click.option("--model", type=click.Choice(MODELS), default=recipes.Recipe.model, show_default=True)
@click.option(
    "--dataset",
    metavar=f"[{'|'.join(DATASETS)}|FOLDER]",
    default="mnist",
    show_default=True,
    shell_complete=complete.words(*DATASETS, folders=True),
    help="A FOLDER holds a subfolder of images for each class.",
)
@click.option("--recipe", type=click.Choice(list(recipes.RECIPES)), default="default", show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training data.  [default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(1), help="Images in a step.  [default: the recipe's]")
@click.option("--lr", type=options.Number(0, min_open=True), help="Peak learning rate.  [default: the recipe's]")
@click.option("--optimizer", type=click.Choice(recipes.OPTIMIZERS), help="[default: the recipe's]")
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), help="Of split, weights, order and augmentation.  [default: 0]"
)
@click.option("--augment/--no-augment", default=None, help="Distort training images.  [default: the recipe's]")
@click.option(
    "--val-fraction",
    type=options.Number(0, 1, max_open=True),
    help="Share of the training data held out to choose the best epoch; 0 trains on all of it.  [default: the recipe's]",
)
@click.option("--device", type=click.Choice(DEVICES), default=DEVICES[0], show_default=True, help="Where to train.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="Of the CPU, for each process.  [default: the quickest of a short trial; with --resume as before]",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint of the same line.")
@click.option("--log-dir", type=click.Path(path_type=Path, file_okay=False), help="Folder for TensorBoard's events.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the bundle.  [default: artifacts/my-DATASET-mlp, or my-DATASET-MODEL]",
)
@options.data_dir
@options.as_json
@options.debug
def train(
    model: str,
    dataset: str,
    recipe: str,
    out: Path | None,
    device: str,
    threads: int | None,
    resume: bool,
    log_dir: Path | None,
    data_dir: Path | None,
    as_json: bool,
    **changes: Any,
) -> int:
    """Train a model and keep its best weights as a bundle.

    MNIST and Fashion-MNIST are downloaded once; `digits` (scikit-learn's 1,797 handwritten digits) needs no network.
    Ctrl-C keeps the best epoch so far; --resume goes on, after a kill as well. The folder BUNDLE.run beside the bundle holds
    checkpoints, the curve, the confusion matrix and the misread validation images.

    A FOLDER of your own images is laid out as torchvision's ImageFolder: FOLDER/CLASS/IMAGE, of any size and colour, made grey
    and scaled to 28x28. Without FOLDER/train and FOLDER/test (or val), about a fifth of each class is held out for testing. A
    copy of the pixels stays in your cache, for `kit export` and `kit bench`; some test images travel in the bundle as golden
    samples. A folder with the name of a data set is typed as ./mnist.

    \b
    Examples:
      kit train --dataset mnist --epochs 20 --out artifacts/my-model
      kit train --dataset photos/flowers
      kit train --recipe record --resume
      torchrun --nproc-per-node=2 --no-python kit train --device cpu
    """
    from apps.cli import render
    from kit.lab.records import training_record

    folder = destination(dataset, model, out)
    loaded = read(dataset, data_dir=data_dir)
    given = {name: value for name, value in changes.items() if value is not None}
    own = loaded.info.recipe if recipe == "default" else {}
    chosen = recipes.recipe(recipe, dataset=dataset, model=model)
    if given.keys() - {"seed"}:  # what it knows of its probabilities holds for the recipe as it is
        chosen = dataclasses.replace(chosen, confidence=None)
    chosen = dataclasses.replace(chosen, **{**own, **given})
    how = How(device=device, threads=threads, resume=resume, log_dir=log_dir)
    bundle = run(loaded, chosen, folder=folder, data_dir=data_dir, how=how)
    if bundle is None:
        return 0  # another process tells the user
    record = training_record(bundle)
    if as_json:
        render.print_json({"bundle": bundle.name, "folder": str(bundle.folder), "training": record})
    render.next_steps(
        (f"kit export {_typed(bundle)} --precision int8", "write fp32 and int8 ONNX files, compared with PyTorch")
    )
    return 130 if record is not None and record.interrupted else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class How:
    """How to go about training, which does not change what comes out."""

    device: str = DEVICES[0]
    threads: int | None = None
    resume: bool = False
    log_dir: Path | None = None


def destination(dataset: str, model: str, out: Path | None) -> Path:
    """Return the bundle's folder, refused before any work when it cannot become one; shared with quickstart."""
    from kit import bundle as bundles
    from kit.bundle.manifest import MANIFEST, check_name
    from kit.errors import UsageError
    from kit.lab import data
    from kit.system import files

    folder = out or bundles.ROOT / recipes.bundle_name(dataset=data.short_name(dataset), model=model)
    try:
        check_name(folder.name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    bundles.refuse_foreign(folder)
    files.check_writable(folder / MANIFEST)
    files.check_writable(_run_folder(folder) / "curve.json")
    return folder


def _run_folder(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.run")


def read(dataset: str, *, data_dir: Path | None) -> Dataset:
    """Read the data set, with progress on stderr; shared with quickstart."""
    from apps.cli import render
    from kit.lab import data

    with render.progress(1.0) as update:
        what = f"reading {data.short_name(dataset)}"
        update(what, 0.0)
        return data.load(
            dataset, data_dir=data_dir, download=True, keep=True, on_share=lambda share: update(what, share)
        )


def run(
    dataset: Dataset, recipe: Recipe, *, folder: Path, data_dir: Path | None, how: How | None = None
) -> Bundle | None:
    """Train with progress on stderr and save the bundle; shared with quickstart. None in all processes but the first."""
    from apps.cli import render

    how = how or How()
    run_folder = _run_folder(folder)
    with render.progress(1.0) as update:
        update("starting PyTorch", 0.0)
        from kit.lab.training import figures
        from kit.lab.training.loop import train
        from kit.lab.training.trained import same_weights, save
        from kit.lab.training.world import world

        with world(how.device, threads=how.threads) as here:
            if here.is_first:
                _tell_data(dataset, recipe)
            if how.threads is None:
                update("choosing threads", 0.0)
                _choose_threads(dataset, recipe, here, run_folder if how.resume else None)
            told = _Told(update, how.log_dir, is_first=here.is_first)
            result = train(
                dataset,
                recipe,
                name=folder.name,
                world=here,
                run_folder=run_folder,
                resume=how.resume,
                listener=told.listener(),
            )
            if not here.is_first:
                return None
            # What was exported from these very weights stays, when a run that had ended is taken up again.
            saved = same_weights(result, folder) or save(result, folder, dataset=dataset, data_dir=data_dir)
            update("drawing", 1.0)
            figures.save(result, run_folder)
            told.close(result)
    _tell(folder, run_folder, result)
    golden = saved.manifest.golden
    render.remark(f"golden samples that travel in the bundle: {golden.samples} ({golden.source})")
    return saved


def _choose_threads(dataset: Dataset, recipe: Recipe, here: World, began: Path | None) -> None:
    """Take the threads that are quickest now, or those with which a run that is taken up again began."""
    import torch

    from apps.cli import render
    from kit.lab.training.checkpoint import RunFolder
    from kit.lab.training.loop import blueprint_for
    from kit.lab.training.threads import quickest, rehearsal

    before = RunFolder(began, recipe, dataset).load() if began is not None else None
    if before is not None and before.threads:
        torch.set_num_threads(before.threads)
        return
    most = torch.get_num_threads()
    if most == 1 or here.size > 1 or here.device.type != "cpu":
        return
    blueprint = blueprint_for(dataset, recipe)
    images = torch.tensor(dataset.train.images)  # a copy: what is read from a file may be read-only
    work = rehearsal(images, recipe, here, outputs=len(blueprint.labels), normalization=blueprint.normalization)
    if said := quickest(work, most).remark():
        render.remark(said)


class _Told:
    """Tells the terminal, and TensorBoard if it is wanted, how training goes on."""

    def __init__(self, update: Update, log_dir: Path | None, *, is_first: bool) -> None:
        self._update, self._is_first = update, is_first
        self._state = ""
        self._writer: Any = None
        if log_dir is not None and is_first:
            from kit.system import packages

            packages.needed("tensorboard", distribution="tensorboard", purpose="--log-dir", extra="tensorboard")
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(log_dir))

    def listener(self) -> Listener:
        from kit.lab.training.loop import Listener

        return Listener(on_epoch=self._epoch, on_step=self._step) if self._is_first else Listener()

    def close(self, result: TrainingResult) -> None:
        if self._writer is not None:
            found = result.record.confidence
            if found is not None:
                self._writer.add_scalar("calibration/error", found.expected_error, result.record.epochs_run)
            self._writer.close()

    def _step(self, what: str, share: float) -> None:
        self._update(f"{what}  {self._state}", share)

    def _epoch(self, epoch: Epoch) -> None:
        from apps.cli import render

        top1 = epoch.validation_top1
        self._state = f"loss {epoch.loss:.4f}" + (f", validation {100 * top1:.2f} %" if top1 is not None else "")
        phase = "" if epoch.phase == "student" else f"{epoch.phase}  "
        render.remark(f"{phase}epoch {epoch.epoch:>3}/{epoch.epochs}  {self._state}  ({epoch.seconds:.1f} s)")
        if self._writer is not None:
            for name, value in (
                ("loss", epoch.loss),
                ("validation_top1", top1),
                ("learning_rate", epoch.learning_rate),
            ):
                if value is not None:
                    self._writer.add_scalar(f"{epoch.phase}/{name}", value, epoch.epoch)


def _tell_data(dataset: Dataset, recipe: Recipe) -> None:
    from apps.cli import render

    train, test, classes = len(dataset.train), len(dataset.test), len(dataset.info.labels)
    points = f"each is {100 / test:.2g} points of top-1"
    render.remark(f"{dataset.name}: {classes} classes, {train:,} training and {test:,} test images ({points})")
    if recipe.drawn or recipe.signs:
        render.remark(f"Trained on too: {recipe.drawn:,} drawn digits, and {recipe.signs:,} drawn signs that are none")
    for note in dataset.notes:
        render.remark(f"Note: {note}.")


def _tell(folder: Path, run_folder: Path, result: TrainingResult) -> None:
    from apps.cli import render

    record, found = result.record, result.record.confidence
    if record.interrupted:
        render.remark(
            f"Interrupted: kept epoch {record.best_epoch} of {record.epochs_run} finished ones; --resume goes on from there."
        )
    validation = "all images trained on"
    if record.validation is not None:
        validation = f"{100 * record.validation.value:.2f} % of {record.validation.samples:,} validation images"
    render.remark(f"{folder}: epoch {record.best_epoch}, {validation}, {record.train_seconds:.0f} s")
    if found is not None:
        threshold = result.blueprint.abstain_below
        unsure = (
            f"; unsure below {percent(threshold, 1)}, {percent(1 - found.answered, 1)} of the images"
            if threshold
            else ""
        )
        render.remark(
            f"calibration error {100 * found.expected_error:.2f} points at temperature {result.blueprint.temperature:g} "
            f"({100 * found.expected_error_raw:.2f} without){unsure}"
        )
    render.remark(f"curve, confusion matrix and misread images: {run_folder}")


def _typed(bundle: Bundle) -> str:
    """Return the shortest name that finds the bundle again."""
    from kit.bundle import ROOT

    return bundle.name if bundle.folder.parent == ROOT else str(bundle.folder)
