"""`kit quickstart`: the whole main job, by the same functions the single commands call."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from apps.cli import options
from apps.cli.bench import exit_code
from apps.cli.bench import run as run_bench
from apps.cli.export import run as run_export
from apps.cli.train import destination, read
from apps.cli.train import run as run_train
from apps.cli.verify import report as report_verify
from kit.choices import Precision
from kit.errors import DatasetUnavailable
from kit.lab.training import recipe as recipes

_WANTED, _EMBEDDED = "mnist", "digits"


@click.command()
@click.option("--epochs", type=click.IntRange(1), help="Passes over the training data.  [default: the recipe's]")
@options.data_dir
@options.debug
def quickstart(epochs: int | None, data_dir: Path | None) -> int:
    """Do the main job once: data, train, export fp32 and int8, verify, bench, one table.

    MNIST is downloaded into the user's cache; if it cannot be had, the embedded digits are used.

    \b
    Example:
      kit quickstart
    """
    from apps.cli import bench_tables, export_tables, render, verify_tables
    from exporters import ExportOptions
    from kit.bench.request import Request
    from kit.lab.records import training_record
    from kit.verify import verify

    dataset = _choose_dataset(data_dir)
    recipe = recipes.recipe("default", dataset=dataset)
    if epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=epochs)
    render.remark(f"1/4  train {recipe.model} on {dataset}")
    folder = destination(dataset, recipe.model, None)
    bundle = run_train(read(dataset, data_dir=data_dir), recipe, folder=folder, data_dir=data_dir)
    if bundle is None:
        return 0
    record = training_record(bundle)
    if record is not None and record.interrupted:
        return 130
    render.remark("2/4  export fp32 and int8")
    report = run_export(bundle, ExportOptions(precisions=(Precision.FP32, Precision.INT8)), data_dir=data_dir)
    export_tables.export_table(report)
    render.remark("3/4  verify")
    with render.progress() as update:
        verification = verify(report.bundle, on_progress=update)
    code = report_verify(verification)
    if code:
        verify_tables.verify_table(verification)
        return code
    render.remark("4/4  bench on every provider that works here")
    results = run_bench(report.bundle, Request(data_dir=data_dir))
    bench_tables.show(results)
    name = bundle.name
    render.next_steps(
        (f"kit demo {name}", "draw a digit and watch both variants read it"),
        (f"kit bench {name} --provider cuda", "the same on a GPU, or the reason why not"),
        (f"kit predict {name} PICTURE", "read a picture of yours"),
        (f"kit info {name}", "what the bundle takes, gives and promises"),
    )
    return exit_code(results)


def _choose_dataset(data_dir: Path | None) -> str:
    from apps.cli import render
    from kit.lab import data

    try:
        with render.progress() as update:
            update(f"looking for {_WANTED}")
            data.load(_WANTED, data_dir=data_dir, download=True)
    except DatasetUnavailable as error:
        render.remark(f"{error}. Going on with the embedded data set {_EMBEDDED!r} instead.")
        return _EMBEDDED
    return _WANTED
