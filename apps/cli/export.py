"""`kit export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from apps.cli import complete, mobile, options, triton, typed
from exporters.options import AUTO, DEFAULT_OPSET, OPSETS
from kit.choices import Precision

if TYPE_CHECKING:
    from exporters import AutoOptions, ExportOptions, ExportReport
    from kit.bundle import Bundle

_WHAT = {"bundle", "precisions", "max_drop", "max_loss", "metric", "data", "data_dir", "opset", "as_json"}
_AUTO_USES = _WHAT | {
    "batch_sizes",
    "threads",
    "calibration",
    "calibration_size",
    "budget_seconds",
    "fine_tune_seconds",
}
_AUTO_ONLY = ("batch_sizes", "threads", "budget_seconds")
_SOURCE_ONLY = (
    *("out", "name", "task", "labels", "weights", "samples", "axes", "inputs", "mean", "std", "pipeline", "size"),
    *("tokenizer", "task_options"),
)
_TASK_ONLY = ("labels", "mean", "std", "pipeline", "size", "tokenizer", "task_options")
_FACTORY_ONLY = ("weights", "inputs")
_UNUSED = (None, ())


@click.command(
    epilog="SOURCE is a bundle (a folder, or a name under ./artifacts; without it, mnist-mlp or the only one there is), a "
    "ready model.onnx, a program.pt2 of torch.export, package.module:factory, or a Hugging Face folder on this machine."
)
@click.argument("bundle", required=False, metavar="[SOURCE]", shell_complete=complete.bundles)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="The new bundle.  [default: artifacts/NAME]"
)
@click.option("--name", help="Of the model.  [default: the source's]")
@click.option(
    "--task",
    metavar="NAME",
    shell_complete=complete.tasks,
    help="What people put in and get out: image-classification, text-classification, text-embedding, table, or an added "
    "one.  [default: what the source's files say, else plain tensors]",
)
@click.option(
    "--labels",
    type=typed.Labels(),
    metavar="FILE|A,B,C",
    help="Classes in the order of the scores: a file with one on each line, a JSON list, or a,b,c.",
)
@click.option(
    "--tokenizer", type=click.Path(path_type=Path, exists=True), metavar="FILE", help="tokenizer.json of a text task."
)
@click.option(
    "--mean",
    type=typed.Numbers(),
    metavar="X,Y,Z",
    help="Pictures: subtracted from each channel of 0 to 1, inside the graph.",
)
@click.option("--std", type=typed.Numbers(), metavar="X,Y,Z", help="Pictures: divides each channel after that.")
@click.option("--pipeline", metavar="NAME", help="Pictures: how one becomes pixels, such as imagenet@2 or resize@2.")
@click.option(
    "--size",
    type=typed.PictureSize(),
    metavar="N|HxW",
    help="Pictures: what the model sees, in pixels.  [default: its own]",
)
@click.option(
    "--task-option",
    "task_options",
    type=typed.TaskOption(),
    multiple=True,
    metavar="NAME=VALUE",
    help="Anything else that the task takes, as JSON or a word: resize=256. May be repeated.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Of a factory's module: a .safetensors file.",
)
@click.option(
    "--input",
    "inputs",
    type=typed.InputType(),
    multiple=True,
    metavar="NAME=DTYPE[SHAPE]",
    help="Of a factory without example inputs: ids=int64[batch,sequence]. May be repeated, in order.",
)
@click.option(
    "--axis",
    "axes",
    type=typed.AxisType(),
    multiple=True,
    metavar="NAME=LEAST..MOST:SIZES",
    help="Bounds of an axis, and sizes to prove and measure: sequence=1..512:16,128. Either alone will do; batch=none for a "
    "model whose rows depend on each other. May be repeated.",
)
@click.option(
    "--samples",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.npz",
    help="Inputs by name, to prove the model with; they travel in the bundle.  [default: drawn to fit the inputs]",
)
@options.data
@options.metric(
    "What decides: top-1, agreement, cosine, max-error, rmse, r2, or a function of yours.  [default: the task's]"
)
@click.option(
    "--max-loss",
    type=options.Number(0),
    help="How much of the metric a variant may lose against the baseline, in its unit.  [default: the metric's own]",
)
@click.option(
    "--max-drop",
    type=options.Number(0),
    help="The same in points of 100, for metrics that are shares; one sample in any case, unless 0.  [default: 0.3 for top-1]",
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice([*Precision, AUTO], case_sensitive=False),
    multiple=True,
    default=(Precision.FP32,),
    show_default=True,
    help="May be repeated; the model as it came is written in any case, the baseline. auto makes all and chooses the "
    "fastest that is right.",
)
@options.quantization
@click.option(
    "--format",
    "formats",
    type=click.Choice(["qdq", "qoperator", "pixel"], case_sensitive=False),
    multiple=True,
    help="Static int8: portable operators, ONNX Runtime's integer ones, or a bare integer chain from raw pixels on. May be "
    "repeated.  [default: qdq]",
)
@options.calibration
@options.per_channel
@options.weight_bits
@click.option(
    "--exclude-layer",
    "exclude_layers",
    multiple=True,
    metavar="NAME|auto",
    help="int8 and int4: leave a layer in float; may be repeated. auto finds the fewest for the allowed loss.",
)
@click.option(
    "--fine-tune",
    "fine_tune_seconds",
    type=options.Duration(),
    metavar="TIME",
    help="int8 and int4: train the weights for so long before, such as 5m, so that integers of them answer as they do; kept "
    "where it pays. For models of PyTorch, with training samples.",
)
@click.option(
    "--opset",
    type=click.IntRange(OPSETS[0], OPSETS[-1]),
    default=DEFAULT_OPSET,
    show_default=True,
    help="ONNX operator set.",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(1),
    multiple=True,
    help="auto: samples in one call to measure; may be repeated.  [default: 1 and 64]",
)
@click.option("--threads", type=click.IntRange(1), help="auto and Triton: threads one operator may use.  [default: 1]")
@click.option(
    "--budget",
    "budget_seconds",
    type=options.Duration(),
    help="auto: time for all of it, such as 5m; what is not begun by then is left out, the most promising comes first.  "
    "[default: as long as it takes]",
)
@triton.triton
@mobile.mobile
@options.as_json
@options.debug
@click.pass_context
def export(ctx: click.Context, /, bundle: str | None, as_json: bool, **asked: Any) -> None:
    """Make a bundle of a model, or more variants of a bundle; all are checked before they appear.

    Each file must be valid ONNX, run at several sizes of every axis, answer as the original does, and stay within the allowed
    loss on the validation and the test samples; if not, nothing is published and the exit code is 1. With --precision auto a
    variant that fails is left out, the others are measured side by side, and the fastest that is right becomes the default.

    \b
    Examples:
      kit export my-mnist-mlp --precision int8
      kit export my-mnist-mlp --precision int4 --exclude-layer auto
      kit export model.onnx
      kit export model.onnx --task image-classification --labels cat,dog
      kit export my-model --precision int8 --data photos/ --max-drop 0.5
      kit export my_package:build --input "x=float32[batch,3,224,224]"
      kit export ./all-MiniLM-L6-v2 --axis sequence=1..512:16,128
      kit export my-model --precision auto --metric rmse --max-loss 0.02
      kit export my_package:build --precision int4 --fine-tune 5m --data photos/
      kit export my-model --triton models/
      kit export my-model --variant int8-qdq --mobile phone/
    """
    if _is_for_others(ctx, bundle, asked, as_json=as_json):
        return
    if given := _given(asked, triton.ONLY):
        raise click.UsageError(f"{options.flag_of(ctx, given)} changes nothing without --triton or --mobile")
    is_auto = AUTO in asked["precisions"]
    if is_auto and len(asked["precisions"]) > 1:
        raise click.UsageError("--precision auto makes all of them: leave the others out")
    if not is_auto and (given := _given(asked, _AUTO_ONLY)):
        raise click.UsageError(f"{options.flag_of(ctx, given)} changes nothing without --precision auto")
    if asked["max_loss"] is not None and asked["max_drop"] is not None:
        raise click.UsageError("--max-loss and --max-drop say the same: leave one out")
    if is_auto:
        options.refuse_unused(ctx, flag="--precision auto", uses=_AUTO_USES)
    if bundle is None or _is_bundle(bundle):
        if given := _given(asked, _SOURCE_ONLY):
            raise click.UsageError(
                f"{options.flag_of(ctx, given)} changes nothing for a bundle, which knows it: give the model it was made of"
            )
        asked["names_opset"] = ctx.get_parameter_source("opset") is ParameterSource.COMMANDLINE
        _export_bundle(bundle, asked, is_auto=is_auto, as_json=as_json)
        return
    if is_auto:
        raise click.UsageError(
            f"--precision auto is for a bundle: kit export {bundle}, then: kit export NAME --precision auto"
        )
    _refuse_needless(ctx, bundle, asked)
    _export_source(bundle, asked, as_json=as_json)


def _given(asked: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if asked[name] not in _UNUSED), None)


def _is_bundle(source: str) -> bool:
    from kit import bundle as bundles

    return bundles.is_bundle(source)


def _refuse_needless(ctx: click.Context, source: str, asked: dict[str, Any]) -> None:
    if not typed.is_factory(source) and (given := _given(asked, _FACTORY_ONLY)):
        raise click.UsageError(
            f"{options.flag_of(ctx, given)} changes nothing for {source}: it is for a factory, package.module:function"
        )
    if source.lower().endswith(".onnx") and ctx.get_parameter_source("opset") is ParameterSource.COMMANDLINE:
        raise click.UsageError(f"--opset changes nothing for {source}, which has one")
    if asked["data_dir"] is not None and asked["data"] is None:
        raise click.UsageError("--data-dir changes nothing without --data")
    if asked["task"] is None and (given := _given(asked, _TASK_ONLY)):
        from kit.tasks import registry

        fitting = ", ".join(name for name in registry.names() if given in _parameters(name))
        raise click.UsageError(f"{options.flag_of(ctx, given)} changes nothing without --task: {fitting}")
    if asked["task"] is not None:
        taken = _parameters(asked["task"])
        unknown = next((name for name, _ in asked["task_options"] if name not in taken), None)
        if unknown is not None:
            raise click.UsageError(
                f"the task {asked['task']} has no option {unknown!r}: it takes {', '.join(sorted(taken))}"
            )
        if given := _given(asked, tuple(name for name in _TASK_ONLY[:-1] if name not in taken)):
            raise click.UsageError(f"{options.flag_of(ctx, given)} changes nothing for the task {asked['task']}")


def _parameters(task: str) -> set[str]:
    import inspect

    from kit.tasks import registry

    return set(inspect.signature(registry.find(task)).parameters)


def _export_bundle(name: str | None, asked: dict[str, Any], *, is_auto: bool, as_json: bool) -> None:
    from kit import bundle as bundles
    from kit.bundle import find

    found = find(name)
    bundles.refuse_packed(found)
    _refuse_opset(found, asked)
    if is_auto:
        _auto(found, _auto_options(found, asked), asked, as_json=as_json)
    else:
        report = run(found, _options(asked), data=asked["data"], data_dir=asked["data_dir"], metric=asked["metric"])
        _show(report, as_json=as_json)
    _say_unknown_task(found)
    _next(name or found.name)


def _refuse_opset(bundle: Bundle, asked: dict[str, Any]) -> None:
    """Refuse another operator set for variants that are made of the bundle's graph."""
    original, baseline = bundle.manifest.original, bundle.baseline
    is_rebuilt = original is not None and original.kind == "architecture"
    if asked["names_opset"] and not is_rebuilt and baseline is not None and baseline.needs.opset != asked["opset"]:
        raise click.UsageError(
            f"--opset changes nothing for {bundle.name}, whose graph has {baseline.needs.opset}: export its model with it"
        )


def _say_unknown_task(bundle: Bundle) -> None:
    from apps.cli import render
    from exporters import request

    if said := request.remark_on_task(bundle):
        render.remark(said)


def _export_source(source: str, asked: dict[str, Any], *, as_json: bool) -> None:
    from apps.cli import render
    from kit import bundle as bundles

    chosen = _options(asked)
    with render.progress() as update:
        update(f"opening {source}")
        from exporters import request

        report = request.export_source(
            source,
            out=asked["out"],
            name=asked["name"],
            task=asked["task"],
            task_options=dict(asked["task_options"])
            | {name: asked[name] for name in _TASK_ONLY[:-1] if asked[name] not in _UNUSED},
            weights=asked["weights"],
            inputs=asked["inputs"],
            axes={one.name: one.axis for one in asked["axes"]},
            samples=asked["samples"],
            data=asked["data"],
            data_dir=asked["data_dir"],
            metric=asked["metric"],
            options=chosen,
            on_progress=update,
        )
    _show(report, as_json=as_json)
    golden = report.bundle.manifest.golden
    if asked["data"] is not None and asked["samples"] is None:
        render.remark(
            f"{golden.samples} samples of {asked['data']} travel in the bundle as golden samples: think of that before you "
            "pass it on. For others: --samples FILE.npz"
        )
    folder = report.bundle.folder
    _next(folder.name if folder.absolute().parent == bundles.ROOT.absolute() else str(folder))


def _is_for_others(ctx: click.Context, source: str | None, asked: dict[str, Any], *, as_json: bool) -> bool:
    for name, written in (("mobile", mobile.write), ("triton", triton.write)):
        if asked[name] is not None:
            written(ctx, source, asked, as_json=as_json)
            return True
    return False


def _options(asked: dict[str, Any]) -> ExportOptions:
    from exporters.options import ExportOptions

    return ExportOptions(
        precisions=tuple(Precision.parse(one) for one in asked["precisions"]),
        quantization=asked["quantization"],
        formats=asked["formats"] or None,
        calibration=asked["calibration"],
        calibration_samples=asked["calibration_size"],
        per_channel=asked["per_channel"],
        weight_bits=int(asked["weight_bits"]) if asked["weight_bits"] else None,
        exclude_layers=asked["exclude_layers"],
        fine_tune_seconds=asked["fine_tune_seconds"],
        opset=asked["opset"],
        max_loss=_allowed(asked),
    )


def _allowed(asked: dict[str, Any]) -> float | None:
    """Return the allowed loss in the metric's unit: points are hundredths of a share."""
    if asked["max_drop"] is not None:
        return float(asked["max_drop"]) / 100
    return None if asked["max_loss"] is None else float(asked["max_loss"])


def run(
    bundle: Bundle,
    chosen: ExportOptions,
    *,
    data: str | None = None,
    data_dir: Path | None = None,
    metric: str | None = None,
) -> ExportReport:
    """Export with progress on stderr; shared with quickstart."""
    from apps.cli import render

    with render.progress() as update:
        update("starting torch.onnx")
        from exporters import request

        return request.export_more(bundle, chosen, data=data, data_dir=data_dir, metric=metric, on_progress=update)


def _auto_options(bundle: Bundle, asked: dict[str, Any]) -> AutoOptions:
    from exporters import AutoOptions  # imports torch: after everything that can be refused without it

    sizes, batch = dict.fromkeys(asked["batch_sizes"]), bundle.signature.batch
    if sizes and batch is None:
        raise click.UsageError(f"--batch-size changes nothing for {bundle.name}, which has no batch axis")
    given = {
        "max_loss": _allowed(asked),
        "points": tuple({str(batch): size} for size in sizes),
        "threads": asked["threads"],
        "calibration": asked["calibration"],
        "calibration_samples": asked["calibration_size"],
        "budget_seconds": asked["budget_seconds"],
        "fine_tune_seconds": asked["fine_tune_seconds"],
    }
    return AutoOptions(opset=asked["opset"], **{key: value for key, value in given.items() if value not in _UNUSED})


def _auto(bundle: Bundle, chosen: AutoOptions, asked: dict[str, Any], *, as_json: bool) -> None:
    from apps.cli import export_tables, render

    with render.progress() as update:
        update("starting torch.onnx")
        from exporters import request

        done = request.export_fastest(
            bundle, chosen, data=asked["data"], data_dir=asked["data_dir"], metric=asked["metric"], on_progress=update
        )
    if as_json:
        candidates = [{"name": one.name, "reason": one.reason, "speed": one.speed} for one in done.judgement.candidates]
        default = done.report.bundle.manifest.default
        found = {"default": default, "candidates": candidates, "tried": done.rungs}
        render.print_json({**export_tables.as_json(done.report), **found})
        return
    for one in done.report.passed:
        for said in one.remarks:
            render.remark(f"{one.variant.id}: {said}")
    export_tables.export_table(done.report)
    export_tables.rungs_table(done.rungs)
    export_tables.judgement_table(done.judgement)


def _show(report: ExportReport, *, as_json: bool) -> None:
    from apps.cli import export_tables, render

    for said in report.remarks:
        render.remark(said)
    for one in report.passed:
        for said in one.remarks:
            render.remark(f"{one.variant.id}: {said}")
    if as_json:
        render.print_json(export_tables.as_json(report))
    else:
        export_tables.export_table(report)


def _next(name: str) -> None:
    from apps.cli import render

    render.next_steps(
        (f"kit bench {name}", "latency of each variant, with a verdict"),
        (f"kit verify {name}", "prove the bundle, here or on another machine"),
    )
