"""`kit export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from apps.cli import options
from kit.spec import Precision, QuantizationScheme

if TYPE_CHECKING:
    from exporters import ExportOptions, ExportReport
    from kit.bundle import Bundle

_INT8_ONLY = ("quantization", "max_drop")


@click.command(epilog=options.BUNDLE_HELP)
@options.bundle_argument
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(list(Precision), case_sensitive=False),
    multiple=True,
    default=(Precision.FP32,),
    show_default=True,
    help="May be given twice; int8 writes fp32 too, its baseline.",
)
@click.option(
    "--quantization",
    type=click.Choice(list(QuantizationScheme), case_sensitive=False),
    default=QuantizationScheme.STATIC,
    show_default=True,
    help="int8: ranges from calibration samples, or found anew in each call.",
)
@click.option("--opset", type=click.IntRange(18, 23), default=20, show_default=True, help="ONNX operator set.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0),
    default=0.3,
    show_default=True,
    help="int8: top-1 points it may lose against fp32; one image in any case, unless 0.",
)
@options.data_dir
@options.as_json
@options.debug
@click.pass_context
def export(
    ctx: click.Context,
    bundle: str | None,
    precisions: tuple[Precision, ...],
    quantization: QuantizationScheme,
    opset: int,
    max_drop: float,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Write ONNX files into a trained BUNDLE, checked before they appear.

    Each file takes raw uint8 pixels with a dynamic batch, and normalises them itself. It must pass onnx.checker, run at batch
    1, 2 and 17, agree with PyTorch, and stay within --max-drop on the validation and the test split; if not, nothing is
    published and the exit code is 1.

    \b
    Examples:
      kit export mnist-mlp
      kit export mnist-mlp --precision int8 --quantization dynamic
    """
    from kit.bundle import find, refuse_packed

    given = [name for name in _INT8_ONLY if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given and Precision.INT8 not in precisions:
        flag = "--" + given[0].replace("_", "-")
        raise click.UsageError(f"{flag} changes nothing without --precision int8")
    found = find(bundle)
    refuse_packed(found)
    from apps.cli import render
    from exporters import ExportOptions  # imports torch: after everything that can be refused without it

    chosen = ExportOptions(precisions=precisions, quantization=quantization, opset=opset, max_drop_points=max_drop)
    report = run(found, chosen, data_dir=data_dir)
    if as_json:
        variants = [
            {"variant": one.variant, "parity": one.parity, "parity_images": one.parity_images} for one in report.passed
        ]
        render.print_json({"bundle": found.name, "folder": str(found.folder), "published": variants})
    else:
        render.export_table(report)
    name = bundle or found.name
    render.next_steps(
        (f"kit bench {name}", "latency of each variant, with a verdict"),
        (f"kit verify {name}", "prove the bundle, here or on another machine"),
    )


def run(bundle: Bundle, chosen: ExportOptions, *, data_dir: Path | None) -> ExportReport:
    """Export with progress on stderr; shared with quickstart."""
    from apps.cli import render

    with render.progress() as update:
        update("starting torch.onnx")
        from exporters import export_bundle

        return export_bundle(bundle, chosen, data_dir=data_dir, on_step=update)
