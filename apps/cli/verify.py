"""`kit verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from apps.cli import options
from kit.choices import Provider

if TYPE_CHECKING:
    from kit.verify import Verification


@click.command(epilog=options.BUNDLE_HELP)
@options.bundle_argument
@options.one_provider
@options.runtimes
@options.threads
@options.as_json
@options.debug
def verify(
    bundle: str | None,
    provider: Provider | None,
    device_id: int,
    allow_fallback: bool,
    runtimes: tuple[str, ...],
    threads: int,
    as_json: bool,
) -> int:
    """Prove a BUNDLE on this machine: hashes, golden samples, parity.

    Needs neither torch nor data. Exit code 0 when everything holds, 1 when a check said no, 3 when the provider cannot run.

    \b
    Examples:
      kit verify mnist-mlp
      kit verify mnist-mlp --provider cuda --json
    """
    from apps.cli import render
    from kit.bundle import find
    from kit.runtime.base import RunnerOptions
    from kit.verify import verify as check

    found = find(bundle)
    chosen = RunnerOptions(
        provider=provider or Provider.CPU, threads=threads, device_id=device_id, allow_fallback=allow_fallback
    )
    with render.progress() as update:
        result = check(found, options=chosen, runtimes=runtimes, on_step=update)
    if as_json:
        render.print_json({"ok": result.ok, **_plain(result)})
    else:
        render.verify_table(result)
    return report(result)


def report(result: Verification) -> int:
    """Say the verdict and return the exit code; shared with quickstart."""
    from apps.cli import render

    if result.ok:
        render.remark(f"{result.bundle}: everything its manifest promises holds on this machine.")
        return 0
    if not result.variants and all(check.ok for check in result.files):
        render.remark(f"{result.bundle} has no exported variant to verify: kit export {result.bundle}")
        return 1
    if result.only_unavailable:
        render.remark(f"{result.bundle}: its files are whole; what could not run here was not checked, see above.")
        return 3
    render.remark(f"{result.bundle}: NOT as its manifest promises; see above.")
    return 1


def _plain(result: Verification) -> dict[str, object]:
    from kit.system.serial import encode

    plain: dict[str, object] = encode(result)
    return plain
