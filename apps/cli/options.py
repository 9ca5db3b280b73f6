"""Options that several commands share. Defaults are read from the library, where each lives once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click
from click.core import ParameterSource

from apps.cli import complete
from kit.choices import CalibrationMethod, Provider, QuantizationScheme

F = TypeVar("F", bound=Callable[..., Any])


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and isinstance(ctx.obj, dict):
        ctx.obj["debug"] = True


def debug(function: F) -> F:
    """Add `--debug`."""
    return click.option(
        "--debug", is_flag=True, expose_value=False, callback=_set_debug, help="Show a traceback when something fails."
    )(function)


BUNDLE_HELP = (
    "BUNDLE is a folder, a packed file, or a name under ./artifacts; without it, mnist-mlp or the only bundle there is."
)

MODEL_HELP = f"{BUNDLE_HELP} A ready model.onnx will do as well."


def bundle_argument(function: F) -> F:
    """Add the optional argument BUNDLE."""
    return click.argument("bundle", required=False, shell_complete=complete.bundles)(function)


def data_dir(function: F) -> F:
    """Add `--data-dir`."""
    return click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the data sets, or of the images a model was trained on.  "
        "[default: $KIT_DATA_DIR, else the user's cache]",
    )(function)


def data(function: F) -> F:
    """Add `--data` and `--data-dir`."""
    function = data_dir(function)
    return click.option(
        "--data",
        metavar="FILE|FOLDER|NAME",
        shell_complete=complete.datasets,
        help="Samples of its task, with or without labels: .npz, a folder of pictures, CSV, JSON lines, Parquet, or a "
        "registered data set.  [default: the data it was trained on]",
    )(function)


def metric(help_text: str) -> Callable[[F], F]:
    """Add `--metric`."""
    return click.option("--metric", metavar="NAME|PKG.MOD:FN", shell_complete=complete.metrics, help=help_text)


def as_json(function: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function)


def one_provider(function: F) -> F:
    """Add `--provider`, `--device-id` and `--allow-fallback` for a command that runs on one provider."""
    function = click.option(
        "--provider",
        type=click.Choice(list(Provider), case_sensitive=False),
        help="Execution provider; strict unless --allow-fallback.  [default: cpu]",
    )(function)
    return fallback(function)


def fallback(function: F) -> F:
    """Add `--device-id` and `--allow-fallback`."""
    function = click.option(
        "--allow-fallback", is_flag=True, help="Accept the CPU if the provider cannot run; every row then says so."
    )(function)
    return click.option("--device-id", type=click.IntRange(0), default=0, show_default=True, help="Index of the GPU.")(
        function
    )


class Number(click.FloatRange):
    """A finite number in a range; click's own takes `nan`, which no comparison refuses."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        found = float(super().convert(value, param, ctx))
        if not math.isfinite(found):
            self.fail(f"{str(value)!r} is no finite number", param, ctx)
        return found


class Duration(click.ParamType[float]):
    """A time typed as `30s`, `2m`, `1h` or `500ms`; seconds without a unit."""

    name = "duration"
    _UNITS: ClassVar[dict[str, float]] = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(value))
        if found is None or found[2] not in self._UNITS or not 0 < float(found[1]) < math.inf:
            self.fail(f"{str(value)!r} is no duration such as 30s, 2m or 1h", param, ctx)
        return float(found[1]) * self._UNITS[found[2]]


def runtimes(function: F) -> F:
    """Add `--runtime`."""
    return click.option(
        "--runtime",
        "runtimes",
        multiple=True,
        default=("onnxruntime",),
        show_default=True,
        shell_complete=complete.runtimes,
        help="May be repeated: onnxruntime, onnxruntime-plain (session.run), openvino, litert, mnn, pytorch, "
        "pytorch-compile, onnx-reference, browser (onnxruntime-web in Chromium), an added one, or all but the browser.",
    )(function)


def threads(function: F) -> F:
    """Add `--threads`."""
    return click.option(
        "--threads",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Threads one operator may use.",
    )(function)


class Size(click.ParamType[int]):
    """An amount of memory typed as `512MB`, `2GB` or `2GiB`; bytes without a unit."""

    name = "size"
    _UNITS: ClassVar[dict[str, int]] = {
        "": 1,
        "b": 1,
        "kb": 10**3,
        "mb": 10**6,
        "gb": 10**9,
        "kib": 2**10,
        "mib": 2**20,
        "gib": 2**30,
    }

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return bytes."""
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(value).lower())
        if found is None or found[2] not in self._UNITS or not float(found[1]) < math.inf:
            self.fail(f"{str(value)!r} is no size such as 512MB or 2GiB", param, ctx)
        return round(float(found[1]) * self._UNITS[found[2]])


def on_gpu(function: F) -> F:
    """Add what says how a GPU runs a model: `--tf32`, `--cuda-graph` and `--gpu-memory-limit`."""
    function = click.option(
        "--gpu-memory-limit",
        "gpu_memory_limit_bytes",
        type=Size(),
        help="The most ONNX Runtime may take of the GPU's memory, such as 2GB.  [default: all that is free]",
    )(function)
    function = click.option(
        "--cuda-graph", is_flag=True, help="CUDA: record the kernels of each batch size once, and replay them."
    )(function)
    return click.option(
        "--tf32",
        is_flag=True,
        help="Let the GPU round the inputs of float32 products to 10 bits: no longer what the CPU computes.",
    )(function)


def bf16(function: F) -> F:
    """Add `--bf16`."""
    return click.option(
        "--bf16", is_flag=True, help="Let OpenVINO compute float32 in bfloat16, on CPUs that do so in hardware."
    )(function)


def quantization(function: F) -> F:
    """Add `--quantization`."""
    return click.option(
        "--quantization",
        type=click.Choice(list(QuantizationScheme), case_sensitive=False),
        help="int8: ranges from calibration samples, or found anew in each call; or weights alone, in blocks.  "
        "[default: static]",
    )(function)


def calibration(function: F) -> F:
    """Add `--calibration` and `--calibration-size`."""
    function = click.option(
        "--calibration-size", type=click.IntRange(1), help="Static int8: samples to look at.  [default: 1024]"
    )(function)
    return click.option(
        "--calibration",
        type=click.Choice(list(CalibrationMethod), case_sensitive=False),
        help="Static int8: the whole range of activations, the one that loses the least information, all but the "
        "outermost, or the one of the least squared error.  [default: minmax]",
    )(function)


def per_channel(function: F) -> F:
    """Add `--per-channel/--per-tensor`."""
    return click.option(
        "--per-channel/--per-tensor",
        default=None,
        help="int8: a scale for each output of a layer, or one for all, the layers evened out before.  [default: per "
        "channel; per tensor for pixel]",
    )(function)


def weight_bits(function: F) -> F:
    """Add `--weight-bits`."""
    return click.option(
        "--weight-bits",
        type=click.Choice(["7", "8"]),
        help="int8: bits of the weights. With 7 no runtime on any CPU saturates.  [default: 8; 7 if all layers are dense]",
    )(function)


def flag_of(ctx: click.Context, name: str) -> str:
    """Return how a parameter is typed, such as `--max-drop`."""
    found = next(parameter for parameter in ctx.command.params if parameter.name == name)
    return "/".join([found.opts[0], *found.secondary_opts])


def refuse_unused(ctx: click.Context, *, flag: str, uses: set[str]) -> None:
    """Refuse with a UsageError what was typed beside a flag and changes nothing with it."""
    free = {"data_dir", "as_json", "debug"}
    for name in ctx.params:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE and name not in uses | free:
            raise click.UsageError(f"{flag_of(ctx, name)} changes nothing with {flag}", ctx)
