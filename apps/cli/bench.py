"""`kit bench`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apps.cli import complete, options
from apps.cli.points import AxisSize, in_flags, points, swept
from kit.choices import Mode, Provider
from kit.errors import StorageUnavailable, UsageError
from kit.report.words import in_json
from kit.system import files

if TYPE_CHECKING:
    from kit.bench.request import Request
    from kit.bench.results import Results
    from kit.bundle import Bundle

_AUTO = "auto"
_SWEEP = "sweep"
_SCENARIOS = ("SingleStream", "MultiStream", "Offline", "Server")
_EXIT_CODES = {"unavailable": 3, "failed": 4}


class _BatchSize(click.ParamType[int | str]):
    name = "n|sweep"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        text = str(value).strip().lower()
        if text == _SWEEP:
            return text
        if not text.isdecimal() or int(text) < 1:
            self.fail(f"{text!r} is no batch size: a number from 1 on, or sweep", param, ctx)
        return int(text)


@click.command(epilog=options.MODEL_HELP)
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
@click.option(
    "--url",
    metavar="ADDRESS",
    help="A kit serve that holds the same variant, measured beside the runtimes: http://HOST:PORT. $KIT_API_KEY is its key.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    shell_complete=complete.variants,
    help="May be repeated.  [default: all of the bundle]",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    type=_BatchSize(),
    multiple=True,
    help="Samples in one call; may be repeated. sweep doubles it until throughput no longer grows.  [default: the model's "
    "typical ones, else 1 and 64]",
)
@click.option(
    "--axis",
    "axes",
    type=AxisSize(),
    multiple=True,
    help="Size of another axis in one call, such as sequence=128; may be repeated.  [default: the usual one]",
)
@click.option("--sweep", metavar="AXIS", help="Double the size along this axis, such as sequence, up to its largest.")
@click.option(
    "--budget",
    "budget_seconds",
    type=options.Duration(),
    help="Time for the whole run, such as 30s or 5m: more time, more rounds.  [default: 100 rounds]",
)
@click.option(
    "--scenario",
    type=click.Choice(_SCENARIOS, case_sensitive=False),
    default=_SCENARIOS[0],
    show_default=True,
    help="How queries arrive, by MLPerf's names.",
)
@click.option("--rate", type=options.Number(0, min_open=True), help="Queries a second that arrive, for Server.")
@click.option("--cold", is_flag=True, help="Fresh processes: from their start to the first prediction, stage by stage.")
@click.option(
    "--profile", is_flag=True, help="Where the time goes, by node; writes traces for Perfetto beside the bundle."
)
@click.option(
    "--mode",
    "modes",
    type=click.Choice(list(Mode), case_sensitive=False),
    multiple=True,
    default=(Mode.HOST.value,),
    show_default=True,
    help="May be repeated. host hands inputs over and outputs back; device binds them where the model runs: no copies.",
)
@options.threads
@options.fallback
@options.on_gpu
@options.bf16
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, allow_dash=True, dir_okay=False),
    metavar="FILE|-",
    help="Write the results there; - is stdout. The last are kept in BUNDLE.bench.json beside the bundle in any case.",
)
@options.metric("Count this metric where the data is at hand.  [default: what the bundle was published with]")
@options.data_dir
@options.debug
def bench(
    bundle: str | None,
    providers: tuple[str, ...],
    runtimes: tuple[str, ...],
    url: str | None,
    variants: tuple[str, ...],
    batch_sizes: tuple[int | str, ...],
    axes: tuple[tuple[str, int], ...],
    sweep: str | None,
    budget_seconds: float | None,
    scenario: str,
    rate: float | None,
    cold: bool,
    profile: bool,
    modes: tuple[str, ...],
    threads: int,
    device_id: int,
    allow_fallback: bool,
    tf32: bool,
    bf16: bool,
    cuda_graph: bool,
    gpu_memory_limit_bytes: int | None,
    json_file: Path | None,
    metric: str | None,
    data_dir: Path | None,
) -> int:
    """Measure a BUNDLE or a model.onnx: latency, throughput, size, scores, and which provider ran how many nodes.

    Variants run in interleaved rounds and are compared round by round. A provider that cannot run is a row that says why, and
    exit code 3; the CPU is never measured under another name.

    \b
    Examples:
      kit bench model.onnx --runtime all
      kit bench model.onnx --batch-size 8 --axis sequence=128
      kit bench model.onnx --sweep sequence
      kit bench mnist-mlp --provider cuda --provider cpu
      kit bench mnist-mlp --batch-size 1 --batch-size 1024 --json here.json
      kit bench mnist-mlp --runtime all --batch-size sweep --budget 2m
      kit bench mnist-mlp --scenario Server --rate 2000
      kit bench mnist-mlp --variant fp32 --url http://127.0.0.1:8080
      kit bench mnist-mlp --provider cuda --mode host --mode device --cuda-graph
    """
    from apps.cli import bench_tables, render
    from kit import metrics, ready
    from kit.bench.measure import Plan
    from kit.bench.request import Request
    from kit.bench.scenarios import Load, Scenario
    from kit.runtime.base import RunnerOptions

    if _AUTO in providers and len(providers) > 1:
        raise UsageError("--provider auto already means every provider that works here", hint="leave the others out")
    if json_file is not None and str(json_file) != "-":
        files.check_writable(json_file)
    if url and not url.startswith(("http://", "https://")):
        raise UsageError(f"{url} is no address of a server", hint="such as http://127.0.0.1:8080")
    found = ready.find(bundle)
    chosen = None if _AUTO in providers else tuple(Provider(name) for name in dict.fromkeys(providers))
    with in_flags():
        request = Request(
            providers=chosen,
            runtimes=(*runtimes, url) if url else runtimes,
            variants=variants or None,
            points=points(found.signature, batch_sizes, axes),
            sweep=swept(found.signature, batch_sizes, sweep),
            load=Load(scenario=Scenario(scenario), rate=rate),
            plan=Plan(budget_seconds=budget_seconds),
            cold=cold,
            profile=found.origin.parent if profile else None,
            runner=RunnerOptions(
                provider=Provider.CUDA if Provider.CUDA in (chosen or ()) else Provider.CPU,
                threads=threads,
                device_id=device_id,
                allow_fallback=allow_fallback,
                tf32=tf32,
                bf16=bf16,
                cuda_graph=cuda_graph,
                gpu_memory_limit_bytes=gpu_memory_limit_bytes,
            ),
            modes=tuple(dict.fromkeys(map(Mode, modes))),
            data_dir=data_dir,
            metric=None if metric is None else metrics.find(metric),
        )
        results = run(found, request)
    if json_file is not None and str(json_file) == "-":
        click.echo(in_json(results.to_json()), nl=False)
    else:
        bench_tables.show(results)
    if json_file is not None and str(json_file) != "-":
        results.save(json_file)
        render.remark(f"Results written to {json_file}.")
    return exit_code(results)


def run(bundle: Bundle, request: Request) -> Results:
    """Measure with progress on stderr and keep the results beside the bundle; shared with quickstart."""
    from apps.cli import render
    from kit.bench.results import last_path
    from kit.bench.run import advice
    from kit.bench.run import bench as measure

    for sentence in advice(bundle, request):
        render.remark(sentence)
    with render.progress(1.0) as update:
        results = measure(
            bundle, request, on_progress=update, on_estimate=lambda seconds: update.say(_estimate(seconds))
        )
    if request.cold or request.profile is not None:
        return results  # the page shows latencies
    try:
        results.save(last_path(bundle))
    except StorageUnavailable as error:  # a bundle on a read-only disk can still be measured
        render.remark(f"The results are not kept for the demo page: {error}")
    return results


def _estimate(seconds: float) -> str:
    return f"Measuring takes about {seconds:,.0f} s." if seconds >= 1 else "Measuring takes about a second."


def exit_code(results: Results) -> int:
    """Return 0 if every row was measured as asked for, else what the worst row calls for."""
    return max((_EXIT_CODES.get(row.status, 0) for row in results.rows), default=0)
