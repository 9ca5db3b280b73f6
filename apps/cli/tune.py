"""`kit tune`."""

from __future__ import annotations

import click

from apps.cli import options
from kit.choices import Goal


@click.command(epilog=options.BUNDLE_HELP)
@options.bundle_argument
@click.option(
    "--goal",
    type=click.Choice(list(Goal), case_sensitive=False),
    default=Goal.LATENCY.value,
    show_default=True,
    help="The quickest answer to one image, or the most images in a second.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Images in one call.  [default: 1; 64 for throughput]")
@click.option("--max-threads", type=click.IntRange(1), help="Threads to try at most.  [default: the CPUs there are]")
@click.option(
    "--max-drop",
    type=click.FloatRange(0),
    default=0.3,
    show_default=True,
    help="Leave out variants that lost more top-1 points when they were published.",
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
    max_threads: int | None,
    max_drop: float,
    show: bool,
    forget: bool,
    as_json: bool,
) -> None:
    """Choose what runs a BUNDLE best on this machine, by measuring it, and remember it here.

    Variants that do here what they did when they were published are measured in every runtime that is installed, the best of
    them again with more threads and other session options. kit.load and kit predict go by the choice from then on, unless a
    variant, threads or a provider is asked for by name. The bundle is not changed.

    \b
    Examples:
      kit tune
      kit tune mnist-mlp --goal throughput --batch-size 256
      kit tune mnist-mlp --show
    """
    from apps.cli import export_tables, render
    from kit.bundle import find
    from kit.runtime import choice as tuned

    if show or forget:
        flag = "show" if show else "forget"
        options.refuse_unused(ctx, flag=f"--{flag}", uses={"bundle", flag})
    found = find(bundle)
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

    with render.progress(1.0) as update:
        done = tuning.tune(
            found,
            goal=Goal.parse(goal),
            batch_size=batch_size,
            most_threads=max_threads,
            max_drop_points=max_drop,
            on_progress=update,
        )
    if as_json:
        render.print_json({"choice": done.choice, "candidates": done.judgement.candidates})
        return
    export_tables.judgement_table(done.judgement)
    export_tables.choice(done.choice, found.name)
    render.next_steps(
        (f"kit predict {name} photo.png", "with what was chosen"),
        (f"kit tune {name} --forget", "to go back to the bundle's default"),
    )
