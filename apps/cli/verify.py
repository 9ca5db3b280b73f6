"""`kit verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apps.cli import complete, options
from kit.choices import Provider
from kit.errors import CheckFailed, Unavailable

if TYPE_CHECKING:
    from kit.bundle import Bundle
    from kit.runtime.base import RunnerOptions
    from kit.verify import ModelCheck, PairCheck, Verification


@click.command(epilog=options.MODEL_HELP)
@options.bundle_argument
@click.option(
    "--against",
    metavar="MODEL",
    shell_complete=complete.bundles,
    help="Compare with another bundle or model.onnx, which is taken to be right.",
)
@click.option(
    "--tolerance",
    type=options.Number(0),
    help="--against: largest error that passes, as a share of the largest value of an output.  [default: 0.0001]",
)
@click.option(
    "--samples",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.npz",
    help="--against: arrays by the names of the inputs.  [default: drawn to fit the inputs]",
)
@options.one_provider
@options.runtimes
@options.threads
@options.as_json
@options.debug
@click.pass_context
def verify(
    ctx: click.Context,
    /,
    bundle: str | None,
    against: str | None,
    tolerance: float | None,
    samples: Path | None,
    provider: Provider | None,
    device_id: int,
    allow_fallback: bool,
    runtimes: tuple[str, ...],
    threads: int,
    as_json: bool,
) -> int:
    """Prove a BUNDLE on this machine: hashes, the way in, and every variant against the original's stored answers.

    Needs neither torch nor data. Of a ready model.onnx it proves what can be proved: that it runs at several sizes, and that
    the rows of a batch do not depend on each other. Exit code 0 if everything holds, 1 if a check said no, 3 if the provider
    cannot run.

    \b
    Examples:
      kit verify mnist-mlp
      kit verify mnist-mlp --provider cuda --json
      kit verify model.onnx --runtime all
      kit verify model.onnx --against other.onnx
    """
    from kit import ready
    from kit.runtime.base import RunnerOptions

    if against is None:
        for name, given in (("tolerance", tolerance), ("samples", samples)):
            if given is not None:
                raise click.UsageError(f"{options.flag_of(ctx, name)} changes nothing without --against")
    found = ready.find(bundle)
    chosen = RunnerOptions(
        provider=provider or Provider.CPU, threads=threads, device_id=device_id, allow_fallback=allow_fallback
    )
    if against is not None:
        if len(runtimes) > 1 or "all" in runtimes:
            raise click.UsageError("--against runs both models in one --runtime")
        return _compare(found, ready.find(against), chosen, runtimes[0], tolerance, samples, as_json=as_json)
    if isinstance(found, ready.ReadyModel):
        return _check_model(found, chosen, runtimes, as_json=as_json)
    return _verify(found, chosen, runtimes, as_json=as_json)


def _verify(bundle: Bundle, chosen: RunnerOptions, runtimes: tuple[str, ...], *, as_json: bool) -> int:
    from apps.cli import render, verify_tables
    from kit.verify import verify as check

    with render.progress() as update:
        result = check(bundle, options=chosen, runtimes=runtimes, on_progress=update)
    if as_json:
        _print(result)
    else:
        verify_tables.verify_table(result)
    return report(result, as_json=as_json)


def _check_model(model: Bundle, chosen: RunnerOptions, runtimes: tuple[str, ...], *, as_json: bool) -> int:
    from apps.cli import render, verify_tables
    from kit.verify import check_model

    with render.progress() as update:
        result = check_model(model, options=chosen, runtimes=runtimes, on_progress=update)
    if as_json:
        _print(result)
    else:
        verify_tables.model_table(result)
    if result.ok:
        return _verdict(f"{result.bundle} runs here as its signature says.", 0, as_json=as_json)
    if result.only_unavailable:
        said = f"{result.bundle}: what could not run here was not checked, see above."
        return _verdict(said, Unavailable.exit_code, as_json=as_json)
    said = f"{result.bundle} does NOT run here as its signature says; see above."
    return _verdict(said, CheckFailed.exit_code, as_json=as_json)


def _compare(
    bundle: Bundle,
    against: Bundle,
    chosen: RunnerOptions,
    runtime: str,
    tolerance: float | None,
    samples: Path | None,
    *,
    as_json: bool,
) -> int:
    from apps.cli import render, verify_tables
    from kit.metrics.fidelity import FLOAT_RTOL
    from kit.tasks.tensors import PlainTensors
    from kit.verify import compare_models

    with render.progress() as update:
        update(f"{bundle.name} and {against.name}")
        result = compare_models(
            bundle,
            against,
            options=chosen,
            runtime=runtime,
            tolerance=FLOAT_RTOL if tolerance is None else tolerance,
            samples=PlainTensors().samples(samples, bundle.signature) if samples else None,
        )
    if as_json:
        _print(result)
    else:
        verify_tables.pair_table(result)
    same = "give the same within the tolerance" if result.ok else f"do NOT give the same: {result.verdict.reason}"
    code = 0 if result.ok else CheckFailed.exit_code
    return _verdict(f"{result.bundle} and {result.against} {same}.", code, as_json=as_json)


def report(result: Verification, *, as_json: bool = False) -> int:
    """Say the verdict and return the exit code; shared with quickstart."""
    if result.ok:
        said = f"{result.bundle}: everything its manifest promises holds on this machine."
        return _verdict(said, 0, as_json=as_json)
    if not result.variants and all(check.ok for check in result.files):
        said = f"{result.bundle} has no exported variant to verify: kit export {result.bundle}"
        return _verdict(said, CheckFailed.exit_code, as_json=as_json)
    if result.only_unavailable:
        said = f"{result.bundle}: its files are whole; what could not run here was not checked, see above."
        return _verdict(said, Unavailable.exit_code, as_json=as_json)
    said = f"{result.bundle}: NOT as its manifest promises; see above."
    return _verdict(said, CheckFailed.exit_code, as_json=as_json)


def _verdict(said: str, code: int, *, as_json: bool) -> int:
    """Print a verdict where the figures are: on stdout, unless that holds JSON, which says it as well. Return the code."""
    from apps.cli import render
    from apps.cli.lines import say

    say(render.stderr() if as_json else render.stdout(), said)
    return code


def _print(result: Verification | ModelCheck | PairCheck) -> None:
    from apps.cli import render
    from kit.system.serial import encode

    render.print_json({"ok": result.ok, **encode(result)})
