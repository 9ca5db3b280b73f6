"""`kit compress`."""

from __future__ import annotations

from pathlib import Path

import click

from apps.cli import options


@click.command(epilog=options.BUNDLE_HELP)
@options.bundle_argument
@click.option(
    "--target-speedup",
    type=options.Number(1, min_open=True),
    default=3.0,
    show_default=True,
    help="How many times as fast as the original's fp32 the new fp32 must be here.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(1),
    multiple=True,
    default=(1, 64),
    show_default=True,
    help="Images in one call at which it must be that fast; may be repeated.",
)
@click.option(
    "--max-drop",
    type=options.Number(0),
    default=0.1,
    show_default=True,
    help="Top-1 points it may lose against the original.",
)
@click.option("--epochs", type=click.IntRange(1), default=200, show_default=True, help="Of fitting.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of views and order.")
@options.threads
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="[default: artifacts/BUNDLE-compressed, of a bundle that came with kit artifacts/my-BUNDLE-compressed]",
)
@options.data_dir
@options.as_json
@options.debug
def compress(
    bundle: str | None,
    target_speedup: float,
    batch_sizes: tuple[int, ...],
    max_drop: float,
    epochs: int,
    seed: int,
    threads: int,
    out: Path | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Make a smaller network of a trained BUNDLE, so much faster, and fit it to the original's answers.

    Border pixels that carry nothing and the hidden units that matter least are left out; how many is measured on this
    machine. The smaller network is fitted on distorted training images, exported as fp32 and int8, held to the original's
    accuracy, and published as a bundle of its own. If it loses too much nothing is written, and the exit code is 1.

    \b
    Examples:
      kit compress my-mnist-mlp
      kit compress mnist-mlp --target-speedup 3 --out artifacts/my-small
    """
    from apps.cli import export_tables, render
    from kit.bundle import find
    from kit.bundle.read import ROOT

    found = find(bundle)
    prefix = "my-" if found.is_shipped else ""
    folder = out or ROOT / f"{prefix}{found.name}-compressed"
    with render.progress() as update:
        update("starting torch")
        from exporters.compress import CompressOptions
        from exporters.compress import compress as run

        chosen = CompressOptions(
            target_speedup=target_speedup,
            batch_sizes=tuple(dict.fromkeys(batch_sizes)),
            threads=threads,
            max_loss=max_drop / 100,
            epochs=epochs,
            seed=seed,
        )
        done = run(found, folder, chosen, data_dir=data_dir, on_progress=update)
    if as_json:
        render.print_json(
            {"bundle": done.bundle.name, "folder": str(done.bundle.folder), "manifest": done.bundle.manifest}
        )
    else:
        export_tables.compress_table(done)
    render.next_steps(
        (f"kit verify {folder}", "prove the bundle, here or on another machine"),
        (f"kit bench {folder}", "latency of each variant, with a verdict"),
    )
