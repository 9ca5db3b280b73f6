"""`kit tune`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from apps.cli import options
from apps.cli.points import AxisSize, in_flags
from kit.choices import Goal
from kit.errors import UsageError

if TYPE_CHECKING:
    from kit.bundle import Bundle


@click.command(epilog=options.MODEL_HELP)
@options.bundle_argument
@click.option(
    "--goal",
    type=click.Choice(list(Goal), case_sensitive=False),
    default=Goal.LATENCY.value,
    show_default=True,
    help="The quickest answer to one sample, or the most samples in a second.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Samples in one call.  [default: 1; 64 for throughput]")
@click.option(
    "--axis",
    "axes",
    type=AxisSize(),
    multiple=True,
    help="Size of another axis in one call, such as sequence=128; may be repeated.  [default: the usual one]",
)
@click.option("--max-threads", type=click.IntRange(1), help="Threads to try at most.  [default: the CPUs there are]")
@click.option(
    "--max-drop",
    type=options.Number(0),
    help="Leave out variants that lost more points of a share, such as top-1, when they were published.  [default: what the "
    "metric allows]",
)
@click.option("--max-loss", type=options.Number(0), help="The same for any metric, in its unit.")
@click.option(
    "--budget",
    "budget_seconds",
    type=options.Duration(),
    help="Time for measuring, such as 1m; session options there is no time for are left out.  [default: 20 rounds of all and "
    "100 of the best, or what fits into 4 minutes]",
)
@click.option("--show", is_flag=True, help="Show what was chosen here before, and measure nothing.")
@click.option("--forget", is_flag=True, help="Drop what was chosen here before, and measure nothing.")
@options.as_json
@options.debug
@click.pass_context
def tune(
    ctx: click.Context,
    bundle: str | None,
    goal: str,
    batch_size: int | None,
    axes: tuple[tuple[str, int], ...],
    max_threads: int | None,
    max_drop: float | None,
    max_loss: float | None,
    budget_seconds: float | None,
    show: bool,
    forget: bool,
    as_json: bool,
) -> None:
    """Choose what runs a BUNDLE or a model.onnx best on this machine, by measuring it, and remember it here.

    Variants that do here what they did when they were published are measured in every runtime that is installed, the best of
    them again with more threads and other session options. kit.load and kit predict go by the choice from then on, unless a
    variant, threads or a provider is asked for by name. The bundle is not changed.

    \b
    Examples:
      kit tune
      kit tune mnist-mlp --goal throughput --batch-size 256
      kit tune model.onnx --axis sequence=128
      kit tune mnist-mlp --show
    """
    from apps.cli import export_tables, render
    from kit import ready
    from kit.runtime import choice as tuned

    if show or forget:
        flag = "show" if show else "forget"
        options.refuse_unused(ctx, flag=f"--{flag}", uses={"bundle", flag})
    found = ready.find(bundle)
    name = bundle or found.name
    if forget:
        had = tuned.forget(found)
        if as_json:
            render.print_json({"forgotten": had})
            return
        render.remark(
            f"Nothing is chosen for {found.name} here any more."
            if had
            else f"Nothing was chosen for {found.name} here."
        )
        return
    if show:
        choice = tuned.choice_for(found)
        if as_json:
            render.print_json(choice)
        else:
            export_tables.choice(choice, found.name)
        return
    from kit import tuning
    from kit.bench.points import batches

    if max_drop is not None and max_loss is not None:
        raise UsageError("--max-drop and --max-loss are two words for one bar", hint="give one of them")
    if max_drop is not None:
        _refuse_points(found)
    batch = batches(found.signature, [batch_size])[0] if batch_size else {}
    with in_flags(), render.progress(1.0) as update:
        done = tuning.tune(
            found,
            goal=Goal.parse(goal),
            sizes={**batch, **dict(axes)},
            most_threads=max_threads,
            max_loss=max_loss if max_drop is None else max_drop / 100,
            budget_seconds=budget_seconds,
            on_progress=update,
        )
    if as_json:
        render.print_json({"choice": done.choice, "candidates": done.judgement.candidates})
        return
    export_tables.judgement_table(done.judgement)
    export_tables.choice(done.choice, found.name)
    render.next_steps(
        *([(f"kit predict {name} INPUT", "with what was chosen")] if found.manifest.task else []),
        (f"kit tune {name} --forget", "to go back to the bundle's default"),
    )


def _refuse_points(bundle: Bundle) -> None:
    """Refuse points of a metric that is no share: they would be taken for a hundredth of its unit."""
    from kit.bench.scores import published

    scores = [next(iter(published(variant)), None) for variant in bundle.variants]
    other = next((one for one in scores if one is not None and one.unit != "%"), None)
    if other is not None:
        unit = f", and its unit is {other.unit}" if other.unit else ""
        raise UsageError(
            f"--max-drop is in points of a share such as top-1; {other.metric} is none{unit}",
            hint="give --max-loss, in the metric's unit",
        )
