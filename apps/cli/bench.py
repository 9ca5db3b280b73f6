"""`kit bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apps.cli import options
from kit.errors import StorageUnavailable, UsageError
from kit.spec import Provider

if TYPE_CHECKING:
    from kit.bench.results import Results
    from kit.bench.run import Request
    from kit.bundle import Bundle

_AUTO = "auto"
_EXIT_CODES = {"unavailable": 3, "failed": 4}


@click.command(epilog=options.BUNDLE_HELP)
@options.bundle_argument
@click.option(
    "--provider",
    "providers",
    type=click.Choice([*Provider, _AUTO], case_sensitive=False),
    multiple=True,
    default=(_AUTO,),
    show_default=True,
    help="May be repeated; auto is every provider that works here.",
)
@options.runtimes
@click.option("--variant", "variants", multiple=True, help="May be repeated.  [default: all of the bundle]")
@click.option(
    "--batch-size",
    "batch_sizes",
    type=click.IntRange(1),
    multiple=True,
    default=(1, 64),
    show_default=True,
    help="Images in one call; may be repeated.",
)
@options.threads
@options.fallback
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    metavar="FILE|-",
    help="Write the results there; - is stdout. The last are kept in BUNDLE.bench.json beside the bundle in any case.",
)
@options.data_dir
@options.debug
def bench(
    bundle: str | None,
    providers: tuple[str, ...],
    runtimes: tuple[str, ...],
    variants: tuple[str, ...],
    batch_sizes: tuple[int, ...],
    threads: int,
    device_id: int,
    allow_fallback: bool,
    json_file: Path | None,
    data_dir: Path | None,
) -> int:
    """Measure a BUNDLE: latency, throughput, size, accuracy, and which provider ran how many nodes.

    Variants run in interleaved rounds and are compared round by round. A provider that cannot run is a row that says why, and
    exit code 3; the CPU is never measured under another name.

    \b
    Examples:
      kit bench mnist-mlp --provider cuda --provider cpu
      kit bench mnist-mlp --batch-size 1 --batch-size 1024 --threads 2 --json results.json
    """
    from apps.cli import render
    from kit.bench.run import Request
    from kit.bundle import find

    if _AUTO in providers and len(providers) > 1:
        raise UsageError("--provider auto already means every provider that works here", hint="leave the others out")
    request = Request(
        providers=None if _AUTO in providers else tuple(Provider(name) for name in dict.fromkeys(providers)),
        runtimes=runtimes,
        variants=variants or None,
        batch_sizes=tuple(dict.fromkeys(batch_sizes)),
        threads=threads,
        device_id=device_id,
        allow_fallback=allow_fallback,
        data_dir=data_dir,
    )
    results = run(find(bundle), request)
    if json_file is not None and str(json_file) == "-":
        click.echo(results.to_json(), nl=False)
    else:
        render.bench_table(results)
    if json_file is not None and str(json_file) != "-":
        results.save(json_file)
        render.remark(f"Results written to {json_file}.")
    return exit_code(results)


def run(bundle: Bundle, request: Request) -> Results:
    """Measure with progress on stderr and keep the results beside the bundle; shared with quickstart."""
    from apps.cli import render
    from kit.bench.results import last_path
    from kit.bench.run import bench as measure

    with render.progress(1.0) as update:
        results = measure(bundle, request, on_progress=update)
    try:
        results.save(last_path(bundle))
    except StorageUnavailable as error:  # a bundle on a read-only disk can still be measured
        render.remark(f"The results are not kept for the demo page: {error}")
    return results


def exit_code(results: Results) -> int:
    """Return 0 when every row was measured as asked for, else what the worst row calls for."""
    return max((_EXIT_CODES.get(row.status, 0) for row in results.rows), default=0)
