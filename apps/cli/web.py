"""`kit web`."""

from __future__ import annotations

import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from apps.cli import options
from kit.errors import PackageMissing, Unavailable

if TYPE_CHECKING:
    from apps.web.build import Site
    from kit.bundle import Bundle


@click.command()
@options.bundle_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the page is written.  [default: NAME-web, with --serve a folder that goes when it ends]",
)
@click.option("--variant", "variants", multiple=True, metavar="ID", help="What it offers; may be repeated, the first is shown first.  [default: the bundle's]")
@click.option("--webgpu/--no-webgpu", default=True, show_default=True, help="Bring the larger runtime along, 27 MB, which is fetched where a GPU may be quicker.")
@click.option("--check/--no-check", default=None, help="Open the page in headless Chromium and let it prove itself.  [default: where one is installed]")
@click.option("--serve", is_flag=True, help="Serve it on this machine until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), default=8090, show_default=True, help="Of --serve; 0: any free one.")
@click.option("--open/--no-open", "open_browser", default=True, show_default=True, help="With --serve: open it in a browser.")
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
    open_browser: bool,
    as_json: bool,
) -> None:
    """Write a page that runs a model in the browser of whoever opens it.

    The page is a folder of static files: it works from any web host, sends nothing anywhere, can be installed on a phone, and
    works without a network once it was seen. Pictures are drawn, chosen or taken; texts and tensors are typed. It holds the
    bundle's golden samples, and proves itself with them when it is asked to.

    \b
    BUNDLE is a folder, a packed file, a name, or a ready model.onnx.

    \b
    Examples:
      kit web mnist-mlp -o site
      kit web mnist-mlp --serve
      kit web my-model --variant int8-qdq --variant fp32 -o site
    """
    from kit import ready

    found = ready.find(bundle)
    if output is None and serve:
        with tempfile.TemporaryDirectory(prefix="kit-web-") as place:
            _run(found, Path(place) / "site", variants, webgpu=webgpu, check=check, serve=port, open_browser=open_browser, as_json=as_json)
        return
    folder = output or Path(f"{found.name}-web")
    _run(found, folder, variants, webgpu=webgpu, check=check, serve=port if serve else None, open_browser=open_browser, as_json=as_json)


def _run(
    bundle: Bundle,
    folder: Path,
    variants: tuple[str, ...],
    *,
    webgpu: bool,
    check: bool | None,
    serve: int | None,
    open_browser: bool,
    as_json: bool,
) -> None:
    from apps.cli import render
    from apps.web.build import build

    site = build(bundle, folder, variants=variants, webgpu=webgpu)
    for one in site.remarks:
        render.remark(one)
    checked = _checked(site, check)
    if as_json:
        render.print_json({**vars(site), "folder": str(folder), "checked": checked})
    elif serve is None:
        click.echo(folder)
    _say(site, checked)
    if serve is not None:
        _serve(folder, serve, open_browser=open_browser)
    else:
        render.next_steps((f"kit web {bundle.origin} -o {folder} --serve", "to look at it"), ("copy the folder to any web host", "to publish it"))


def _checked(site: Site, wanted: bool | None) -> dict[str, object] | None:
    """Try the page in Chromium; where there is none, say so unless it was asked for."""
    if wanted is False:
        return None
    from apps.web.trial import tried

    try:
        return vars(tried(site.folder, site.variants))
    except (PackageMissing, Unavailable):
        if wanted:
            raise
        return None


def _say(site: Site, checked: dict[str, object] | None) -> None:
    from apps.cli import render
    from kit.report.format import size

    render.remark(
        f"Wrote {site.folder}: {', '.join(site.variants)}; page {size(site.page_bytes)}, model {size(site.model_bytes)}, "
        f"runtime {size(site.runtime_bytes)}."
    )
    if checked is None:
        render.remark("It was not opened in a browser here. Its button `Verify` proves it wherever it is opened.")
        return
    samples, (exact, items) = checked["samples"], checked["items"]  # type: ignore[misc]
    answers = ", ".join(f"{agreeing} of {of} answers of {name}" for name, (agreeing, of) in samples.items())  # type: ignore[attr-defined]
    way_in = f", {exact} of {items} items become the same tensors" if items else ""
    render.remark(f"Checked in Chromium: {answers} agree{way_in}; first answer after {checked['first_answer_ms'] / 1000:.2f} s.")  # type: ignore[operator]


def _serve(folder: Path, port: int, *, open_browser: bool) -> None:
    from apps.cli import render
    from kit.runtime.browser.pages import Pages, below

    with Pages(below(folder), port=port) as pages:
        render.remark(f"{pages.address}   Ctrl-C ends it.")
        if open_browser:
            webbrowser.open(pages.address)
        pages.wait()
