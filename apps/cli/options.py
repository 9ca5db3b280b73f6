"""Options that several commands share. Defaults are read from the library, where each lives once."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click

from kit.spec import Provider

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


def bundle_argument(function: F) -> F:
    """Add the optional argument BUNDLE."""
    return click.argument("bundle", required=False)(function)


def data_dir(function: F) -> F:
    """Add `--data-dir`."""
    return click.option(
        "--data-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the data sets, or of the images a model was trained on.  "
        "[default: $KIT_DATA_DIR, else the user's cache]",
    )(function)


def as_json(function: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")(function)


def one_provider(function: F) -> F:
    """Add `--provider`, `--device-id` and `--allow-fallback` for a command that runs on one provider."""
    function = click.option(
        "--provider",
        type=click.Choice(list(Provider), case_sensitive=False),
        default=Provider.CPU,
        show_default=True,
        help="Execution provider; strict unless --allow-fallback.",
    )(function)
    return fallback(function)


def fallback(function: F) -> F:
    """Add `--device-id` and `--allow-fallback`."""
    function = click.option(
        "--allow-fallback", is_flag=True, help="Accept the CPU where the provider cannot run; every row then says so."
    )(function)
    return click.option("--device-id", type=click.IntRange(0), default=0, show_default=True, help="Index of the GPU.")(
        function
    )


class Duration(click.ParamType[float]):
    """A time typed as `30s`, `2m`, `1h` or `500ms`; seconds without a unit."""

    name = "duration"
    _UNITS: ClassVar[dict[str, float]] = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(value))
        if found is None or found[2] not in self._UNITS or float(found[1]) == 0:
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
        help="May be repeated: onnxruntime, openvino, pytorch, pytorch-compile, onnx-reference, an added one, or all.",
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
