"""`kit export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apps.cli import options
from exporters.options import AUTO, DEFAULT_OPSET, OPSETS
from kit.choices import Precision

if TYPE_CHECKING:
    from exporters import AutoOptions, ExportOptions, ExportReport
    from kit.bundle import Bundle

_AUTO_USES = {"bundle", "precisions", "max_drop", "batch_sizes", "threads", "calibration", "calibration_size", "opset"}
_AUTO_ONLY = ("batch_sizes", "threads")


@click.command(epilog=options.BUNDLE_HELP)
@options.bundle_argument
@click.option(
    "--precision",
    "precisions",
    type=click.Choice([*Precision, AUTO], case_sensitive=False),
    multiple=True,
    default=(Precision.FP32,),
    show_default=True,
    help="May be repeated; fp32 is written in any case, the baseline. auto makes all and chooses the fastest that is right.",
)
@options.quantization
@click.option(
    "--format",
    "formats",
    type=click.Choice(["qdq", "qoperator", "pixel"], case_sensitive=False),
    multiple=True,
    help="Static int8: portable operators, ONNX Runtime's integer ones, or a bare integer chain from the pixels on. May be "
    "repeated.  [default: qdq]",
)
@options.calibration
@options.per_channel
@click.option(
    "--exclude-layer",
    "exclude_layers",
    multiple=True,
    metavar="NAME|auto",
    help="int8 and int4: leave a layer in float; may be repeated. auto finds the fewest for --max-drop.",
)
@click.option(
    "--opset",
    type=click.IntRange(OPSETS[0], OPSETS[-1]),
    default=DEFAULT_OPSET,
    show_default=True,
    help="ONNX operator set.",
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0),
    help="Top-1 points a variant may lose against fp32; one image in any case, unless 0.  [default: 0.3]",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(1),
    multiple=True,
    help="auto: images in one call to measure; may be repeated.  [default: 1 and 64]",
)
@click.option("--threads", type=click.IntRange(1), help="auto: threads one operator may use.  [default: 1]")
@options.data_dir
@options.as_json
@options.debug
@click.pass_context
def export(
    ctx: click.Context,
    /,
    bundle: str | None,
    precisions: tuple[str, ...],
    max_drop: float | None,
    opset: int,
    data_dir: Path | None,
    as_json: bool,
    **int8: Any,
) -> None:
    """Write ONNX files into a trained BUNDLE, checked before they appear.

    Each file takes raw uint8 pixels with a dynamic batch, and normalises them itself. It must pass onnx.checker, run at batch
    1, 2 and 17, agree with PyTorch, and stay within --max-drop on the validation and the test split; if not, nothing is
    published and the exit code is 1. With --precision auto a variant that fails is left out, the others are measured side by
    side, and the fastest that is right becomes the default.

    \b
    Examples:
      kit export my-mnist-mlp
      kit export my-mnist-mlp --precision auto
      kit export my-mnist-mlp --precision int8 --format qdq --format pixel
      kit export my-mnist-mlp --precision int8 --quantization dynamic
      kit export my-mnist-mlp --precision int4 --exclude-layer auto --max-drop 0.05
    """
    from kit.bundle import find, refuse_packed

    if AUTO in precisions:
        if len(precisions) > 1:
            raise click.UsageError("--precision auto makes all of them: leave the others out")
        options.refuse_unused(ctx, flag="--precision auto", uses=_AUTO_USES)
    elif given := [name for name in _AUTO_ONLY if int8[name]]:
        raise click.UsageError(f"{options.flag_of(ctx, given[0])} changes nothing without --precision auto")
    found = find(bundle)
    refuse_packed(found)
    from apps.cli import export_tables, render

    name = bundle or found.name
    if AUTO in precisions:
        _auto(found, _auto_options(max_drop, opset, int8), data_dir=data_dir, as_json=as_json)
    else:
        from exporters.options import ExportOptions

        chosen = ExportOptions(
            precisions=tuple(Precision.parse(one) for one in precisions),
            quantization=int8["quantization"],
            formats=int8["formats"] or None,
            calibration=int8["calibration"],
            calibration_samples=int8["calibration_size"],
            per_channel=int8["per_channel"],
            exclude_layers=int8["exclude_layers"],
            opset=opset,
            max_drop_points=max_drop,
        )
        report = run(found, chosen, data_dir=data_dir)
        if as_json:
            render.print_json(_as_json(report))
        else:
            export_tables.export_table(report)
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


def _auto_options(max_drop: float | None, opset: int, int8: dict[str, Any]) -> AutoOptions:
    from exporters import AutoOptions  # imports torch: after everything that can be refused without it

    given = {
        "max_drop_points": max_drop,
        "batch_sizes": tuple(dict.fromkeys(int8["batch_sizes"])),
        "threads": int8["threads"],
        "calibration": int8["calibration"],
        "calibration_samples": int8["calibration_size"],
    }
    return AutoOptions(opset=opset, **{key: value for key, value in given.items() if value not in {None, ()}})


def _auto(bundle: Bundle, chosen: AutoOptions, *, data_dir: Path | None, as_json: bool) -> None:
    from apps.cli import export_tables, render

    with render.progress() as update:
        update("starting torch.onnx")
        from exporters import export_auto

        done = export_auto(bundle, chosen, data_dir=data_dir, on_step=update)
    if as_json:
        candidates = [{"name": one.name, "reason": one.reason, "speed": one.speed} for one in done.judgement.candidates]
        default = done.report.bundle.manifest.default_variant
        render.print_json({**_as_json(done.report), "default": default, "candidates": candidates})
        return
    export_tables.export_table(done.report)
    export_tables.judgement_table(done.judgement)


def _as_json(report: ExportReport) -> dict[str, Any]:
    return {
        "bundle": report.bundle.name,
        "folder": str(report.bundle.folder),
        "published": [
            {"variant": one.variant, "parity": one.parity, "parity_images": one.parity_images} for one in report.passed
        ],
    }
