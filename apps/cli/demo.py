"""`kit demo`."""

from __future__ import annotations

import os
import re
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from apps.cli import options
from kit.errors import PackageMissing, Unavailable, UsageError

_GRACE_SECONDS = 5
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")


@click.command(epilog=options.BUNDLE_HELP)
@options.bundle_argument
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True)
@click.option("--open/--no-open", "open_browser", default=True, show_default=True, help="Open the page in a browser.")
@click.option(
    "--artifacts-only",
    is_flag=True,
    help="Open no path of this machine but those of ./artifacts, of kit's own bundles and of BUNDLE. Uploads stay possible.",
)
@click.option(
    "--allow-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="A name beside localhost under which a proxy shows the page, such as demo.example.com. May be repeated.",
)
@options.data_dir
@options.debug
def demo(
    bundle: str | None,
    port: int,
    open_browser: bool,
    artifacts_only: bool,
    allowed_hosts: tuple[str, ...],
    data_dir: Path | None,
) -> int:
    """Open a page to try a BUNDLE on, see how right and how fast it is, and take it away.

    Give it what its task takes: a picture drawn, uploaded or photographed, a text, a row of a table; any other model gets
    tensors, of its golden samples or of an .npz. Every variant in every runtime answers, side by side. Score the variants and
    open the samples that are misread; bench with progress and a stop button, and compare with results of another machine; see
    graphs, card and manifest. A packed bundle from anyone may be uploaded: it is checked first and run with limits of time and
    memory, as is whatever lies neither under ./artifacts nor is BUNDLE.

    It listens on this machine only, answers to the name localhost, and asks the internet for nothing. Ctrl-C ends it. Whoever
    shows it to others gives --artifacts-only, and --allow-host with the name of the proxy in front of it.

    \b
    Example:
      kit demo mnist-mlp
    """
    import subprocess  # `kit --help` imports this file, and must be quick

    from kit import ready
    from kit.system.packages import install_line

    found = ready.find(bundle)
    found.variant()  # a bundle without variants has nothing to show: say so here, not in the page
    missing = [name for name in ("streamlit", "onnx") if find_spec(name.replace("-", "_")) is None]
    if missing:
        raise PackageMissing(
            f"the demo page needs {' and '.join(missing)}",
            hint=f"{install_line(*missing)}   (it is kit's extra `demo`)",
        )
    _check_hosts(allowed_hosts)
    _check_port(port)
    environment = dict(os.environ)
    if data_dir is not None:
        environment["KIT_DATA_DIR"] = str(data_dir)
    told = [f"--port={port}", *(f"--allow-host={name}" for name in allowed_hosts)]
    told += ["--artifacts-only"] if artifacts_only else []
    told += ["--open-browser"] if open_browser else []
    # -P keeps a folder named apps/ or kit/ in the current directory from standing in for ours.
    line = [sys.executable, "-P", "-m", "apps.demo.serve", *told, "--", str(found.origin)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # told to end, it ends the server as well
    with subprocess.Popen(line, env=environment) as server:
        try:
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            server.terminate()
            try:
                server.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()


def _check_hosts(names: tuple[str, ...]) -> None:
    for name in names:
        if not _HOST.fullmatch(name):
            raise UsageError(
                f"--allow-host {name} is no name of a host", hint="such as demo.example.com, without a port"
            )


def _check_port(port: int) -> None:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            raise Unavailable(f"port {port} is in use", hint=f"kit demo --port {port + 1}")
