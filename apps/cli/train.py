"""`kit train`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apps.cli import options
from kit.training import recipe as recipes

if TYPE_CHECKING:
    from kit.bundle import Bundle
    from kit.training.recipe import Recipe

DATASETS = ("mnist", "fashion-mnist", "digits")
MODELS = ("mlp-512-256-128", "mlp-64-64")


@click.command()
@click.option("--model", type=click.Choice(MODELS), default=recipes.Recipe.model, show_default=True)
@click.option("--dataset", type=click.Choice(DATASETS), default="mnist", show_default=True)
@click.option("--recipe", type=click.Choice(list(recipes.RECIPES)), default="default", show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training data.  [default: the recipe's]")
@click.option("--batch-size", type=click.IntRange(1), help="Images in a step.  [default: the recipe's]")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Peak learning rate.  [default: the recipe's]")
@click.option("--optimizer", type=click.Choice(recipes.OPTIMIZERS), help="[default: the recipe's]")
@click.option("--seed", type=click.IntRange(0), help="Of split, weights, order and augmentation.  [default: 0]")
@click.option("--augment/--no-augment", default=None, help="Distort training images.  [default: the recipe's]")
@click.option(
    "--val-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of the training data held out to choose the best epoch.  [default: 0.1]",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the bundle.  [default: artifacts/DATASET-mlp]")
@options.data_dir
@options.as_json
@options.debug
def train(
    model: str,
    dataset: str,
    recipe: str,
    out: Path | None,
    data_dir: Path | None,
    as_json: bool,
    **changes: Any,
) -> int:
    """Train a model and keep its best weights as a bundle.

    MNIST and Fashion-MNIST are downloaded once; `digits` (scikit-learn's 1,797 handwritten digits) needs no network.
    Ctrl-C keeps the best epoch so far.

    \b
    Example:
      kit train --dataset mnist --epochs 20 --out artifacts/my-model
    """
    from apps.cli import render

    chosen = dataclasses.replace(
        recipes.recipe(recipe, dataset=dataset),
        model=model,
        **{name: value for name, value in changes.items() if value is not None},
    )
    bundle = run(dataset, chosen, out=out, data_dir=data_dir)
    record = bundle.manifest.training
    if as_json:
        render.print_json({"bundle": bundle.name, "folder": str(bundle.folder), "training": record})
    render.next_steps(
        (f"kit export {_typed(bundle)} --precision int8", "write fp32 and int8 ONNX files, checked against PyTorch")
    )
    return 130 if record is not None and record.interrupted else 0


def run(dataset: str, recipe: Recipe, *, out: Path | None, data_dir: Path | None) -> Bundle:
    """Train with progress on stderr and save the bundle; shared with quickstart."""
    from apps.cli import render
    from kit import bundle as bundles
    from kit import data
    from kit.errors import UsageError
    from kit.spec import check_name

    folder = out or bundles.ROOT / recipes.bundle_name(dataset=dataset, model=recipe.model)
    try:
        name = check_name(folder.name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    bundles.refuse_foreign(folder)
    with render.progress(1.0) as update:
        update(f"reading {dataset}", 0.0)
        loaded = data.load(dataset, data_dir=data_dir, download=True)
        update("starting PyTorch", 0.0)
        from kit.training.loop import Epoch, train
        from kit.training.trained import save

        state = ""

        def on_epoch(epoch: Epoch) -> None:
            nonlocal state
            state = f"loss {epoch.loss:.4f}, validation {100 * epoch.validation_top1:.2f} %"
            render.remark(f"epoch {epoch.epoch:>3}/{recipe.epochs}  {state}  ({epoch.seconds:.1f} s)")

        def on_step(done: int, total: int) -> None:
            update(f"training {recipe.model}  {state}", done / total)

        result = train(loaded, recipe, name=name, on_epoch=on_epoch, on_step=on_step)
        saved = save(result, folder, data_dir=data_dir)
    record = result.record
    if record.interrupted:
        render.remark(f"Interrupted: kept the best of {record.epochs_run} finished epochs (epoch {record.best_epoch}).")
    validation = 100 * record.validation.top1
    render.remark(
        f"{folder}: epoch {record.best_epoch}, {validation:.2f} % of {record.validation.images:,} validation images, "
        f"{record.train_seconds:.0f} s"
    )
    return saved


def _typed(bundle: Bundle) -> str:
    """Return the shortest name that finds the bundle again."""
    from kit.bundle import ROOT

    return bundle.name if bundle.folder.parent == ROOT else str(bundle.folder)
