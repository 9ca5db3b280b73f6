"""`kit blame`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from apps.cli import options
from kit.choices import Precision
from kit.system import files


@click.command(epilog=options.BUNDLE_HELP)
@options.bundle_argument
@click.option(
    "--precision",
    type=click.Choice([Precision.INT8, Precision.INT4], case_sensitive=False),
    default=Precision.INT8.value,
    show_default=True,
    help="What to quantize to.",
)
@options.quantization
@options.calibration
@options.per_channel
@options.weight_bits
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Draw it into this file, .png or .svg."
)
@options.data
@options.metric("What is lost is counted by this.  [default: the task's]")
@options.as_json
@options.debug
def blame(
    bundle: str | None,
    precision: str,
    output: Path | None,
    data: str | None,
    metric: str | None,
    data_dir: Path | None,
    as_json: bool,
    **int8: Any,
) -> None:
    """Show which layers of a BUNDLE lose what when they are quantized.

    For every layer: the quantization error of its own output, and what becomes of the answers and the metric if only that
    layer is quantized and if only that layer is not. Errors are signal to quantization noise (SQNR) in decibels: 6 more are
    half the error. Looks at validation samples; nothing is published.

    \b
    Examples:
      kit blame my-mnist-mlp
      kit blame my-mnist-mlp --per-tensor -o blame.png
      kit blame my-mnist-mlp --precision int4
      kit blame my-model --data rows.csv
    """
    from apps.cli import export_tables, render
    from exporters.options import ExportOptions
    from kit.bundle import find

    found = find(bundle)
    chosen = ExportOptions(
        precisions=(Precision.parse(precision),),
        quantization=int8["quantization"],
        calibration=int8["calibration"],
        calibration_samples=int8["calibration_size"],
        per_channel=int8["per_channel"],
        weight_bits=int(int8["weight_bits"]) if int8["weight_bits"] else None,
    )
    if output is not None:
        if output.suffix.lower() not in {".png", ".svg"}:
            raise click.UsageError(f"{output.name} must end in .png or .svg")
        files.check_writable(output)
    with render.progress() as update:
        update("starting torch.onnx")
        from exporters.request import blame_layers, remark_on_task

        unknown = remark_on_task(found)
        result = blame_layers(found, chosen, data=data, data_dir=data_dir, metric=metric, on_progress=update)
    if unknown:
        render.remark(unknown)
    if as_json:
        render.print_json(result)
    else:
        export_tables.blame_table(result)
    if output is not None:
        from exporters.search.blame_picture import draw

        files.write(output, draw(result, form=output.suffix.lower()[1:]))
        render.remark(f"Drawn into {output}.")
    name = bundle or found.name
    if result.together is not None and result.together.loss > 0:
        render.next_steps(
            (f"kit export {name} --precision {precision} --exclude-layer auto", "leave the fewest layers in float"),
        )
    elif result.together is not None:
        render.remark("All layers together lose nothing: none needs to stay in float.")
