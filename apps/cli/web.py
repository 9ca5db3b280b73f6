"""`kit web`."""

from __future__ import annotations

import contextlib
import tempfile
import webbrowser
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from apps.cli import complete, options
from kit.errors import PackageMissing, Unavailable

if TYPE_CHECKING:
    from apps.web.build import Site
    from apps.web.trial import Trial


@click.command()
@options.bundle_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the page is written.  [default: NAME-web; with --serve, a folder that goes when it ends]",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="ID",
    shell_complete=complete.variants,
    help="What it offers; may be repeated, the first is shown first.  [default: the bundle's]",
)
@click.option(
    "--webgpu/--no-webgpu",
    default=True,
    show_default=True,
    help="Bring along the runtime for GPUs, 27 MB, which is fetched where a model is slow without one.",
)
@click.option(
    "--check/--no-check",
    default=None,
    help="Open the page in headless Chromium, where it proves itself.  [default: if there is one]",
)
@click.option("--serve", is_flag=True, help="Serve the page on this machine until Ctrl-C.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="Of --serve; 0: any free one."
)
@click.option("--no-open", is_flag=True, help="With --serve: open no browser.")
@options.as_json
@options.debug
def web(
    bundle: str | None,
    output: Path | None,
    variants: tuple[str, ...],
    webgpu: bool,
    check: bool | None,
    serve: bool,
    port: int,
    no_open: bool,
    as_json: bool,
) -> None:
    """Write a page that runs a model in the browser of whoever opens it.

    The page is a folder of static files for any web host. It sends nothing anywhere, can be installed on a phone, and works
    without a network once it was opened. Pictures are drawn, chosen or taken; texts and tensors are typed. The bundle's golden
    samples travel in it, and it proves itself with them when it is asked to.

    BUNDLE is a folder, a packed file, a name, or a ready model.onnx.

    \b
    Examples:
      kit web mnist-mlp -o site
      kit web mnist-mlp --serve
      kit web my-model --variant int8-qdq --variant fp32 -o site
    """
    from apps.cli import render
    from apps.web.build import build
    from kit import ready

    found = ready.find(bundle)
    with _place(output, found.name, keeps=not serve) as folder:
        site = build(found, folder, variants=variants, webgpu=webgpu, check=partial(_tried, wanted=check))
        for one in site.remarks:
            render.remark(one)
        if as_json:
            render.print_json({**vars(site), "folder": str(folder)})
        elif output is not None or not serve:
            click.echo(folder)
        _say(site)
        if serve:
            _serve(folder, port, opens=not no_open)
            return
    render.next_steps(
        (f"kit web {found.origin} -o {folder} --serve", "to look at it"),
        (f"python -m http.server -d {folder}", "as any web host would serve it"),
    )


@contextlib.contextmanager
def _place(output: Path | None, name: str, *, keeps: bool) -> Iterator[Path]:
    if output is not None or keeps:
        yield output or Path(f"{name}-web")
        return
    with tempfile.TemporaryDirectory(prefix="kit-web-") as folder:
        yield Path(folder) / "site"


def _tried(folder: Path, variants: Sequence[str], *, wanted: bool | None) -> Trial | None:
    if wanted is False:
        return None
    from apps.web.trial import tried

    try:
        return tried(folder, variants)
    except (PackageMissing, Unavailable):
        if wanted:
            raise
        return None


def _say(site: Site) -> None:
    from apps.cli import render
    from kit.report.format import size

    parts = ", ".join(f"{kind} {size(site.bytes[kind])}" for kind in ("page", "model", "runtime"))
    render.remark(f"{', '.join(site.variants)}: {parts}.")
    trial = site.trial
    if trial is None:
        render.remark("No browser opened it here: its button Verify proves it wherever it is opened.")
        return
    answers = ", ".join(f"{name} agrees on {same} of {all_} samples" for name, (same, all_) in trial.samples.items())
    same, all_ = trial.items
    way_in = f"; {same} of {all_} items become the same tensors as in Python" if all_ else ""
    if all_ > same:
        way_in += f", the others differ by {trial.most:.2g} at most"
    render.remark(f"Checked in Chromium: {answers}{way_in}; first answer after {trial.first_answer_ms / 1000:.2f} s.")


def _serve(folder: Path, port: int, *, opens: bool) -> None:
    from apps.cli import render
    from kit.runtime.browser.pages import Pages, below

    with Pages(below(folder), port=port) as pages:
        render.remark(f"{pages.address}   (Ctrl-C ends it)")
        if opens:
            webbrowser.open(pages.address)
        pages.wait()
