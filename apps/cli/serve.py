"""`kit serve`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apps.cli import complete, options
from kit.choices import Provider
from kit.errors import BadInput, PackageMissing, UsageError

if TYPE_CHECKING:
    from apps.serve.server import Settings

_MODULES = {
    "httptools": "httptools",
    "orjson": "orjson",
    "prometheus_client": "prometheus-client",
    "starlette": "starlette",
    "swagger_ui_bundle": "swagger-ui-bundle",
    "uvicorn": "uvicorn",
}
_WATCH_SECONDS = 2.0
_WITH_RAY = {
    *("models", "host", "port", "variant", "provider", "threads", "max_batch", "batch_delay", "max_queue", "max_body"),
    *("timeout", "watch", "ray", "replicas", "cors", "api_key_file", "log"),
}
_GRPC_MODULES = {"grpc": "grpcio", "tritonclient": "tritonclient"}


@click.command()
@click.argument("models", nargs=-1, metavar="[MODEL|FOLDER|NAME=MODEL]...", shell_complete=complete.bundles)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address; others than loopback are for all to reach."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Of HTTP; 0: any free one."
)
@click.option("--grpc-port", type=click.IntRange(1, 65535), help="Speak the protocol over gRPC as well.")
@click.option(
    "--variant", shell_complete=complete.variants, help="[default: what kit tune chose here, else the bundle's]"
)
@options.one_provider
@click.option("--threads", type=click.IntRange(1), help="Threads one operator may use.  [default: as tuned, else 1]")
@click.option(
    "--max-batch", type=click.IntRange(1), default=64, show_default=True, help="Samples of all requests in one call."
)
@click.option(
    "--batch-delay", type=options.Duration(), help="Wait for others before a call, such as 2ms.  [default: 0]"
)
@click.option(
    "--max-queue", type=click.IntRange(1), default=1024, show_default=True, help="Requests that wait for a model."
)
@click.option("--max-body", type=options.Size(), default="64MiB", show_default=True, help="The largest request.")
@click.option(
    "--timeout",
    type=options.Duration(),
    default="30s",
    show_default=True,
    help="For a request to arrive, for it to wait, and for the last ones at the end.",
)
@click.option("--watch", is_flag=True, help="Take models that change on disk, once they are proved.")
@click.option("--workers", type=click.IntRange(1, 256), default=1, show_default=True, help="Processes on one port.")
@click.option("--ray", metavar="ADDRESS", help="Serve on the nodes of this Ray cluster; auto: the one of this machine.")
@click.option(
    "--replicas", metavar="N|MIN-MAX", help="With --ray: engines for each model, or between how many.  [default: 1]"
)
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Let pages of this origin ask. May be repeated.")
@click.option(
    "--api-key-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Keys, one on a line; clients send one as Authorization: Bearer KEY.",
)
@click.option("--tls-cert", type=click.Path(dir_okay=False, path_type=Path), help="Certificate chain, PEM.")
@click.option("--tls-key", type=click.Path(dir_okay=False, path_type=Path), help="Its private key, PEM.")
@click.option(
    "--dockerfile",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Do not serve: write what an image is built of, with --provider cuda for CUDA, and a KServe example.",
)
@click.option("--log", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the log.")
@click.option("--log-requests", is_flag=True, help="A line for each request; never what it holds.")
@options.debug
@click.pass_context
def serve(
    ctx: click.Context,
    models: tuple[str, ...],
    host: str,
    port: int,
    grpc_port: int | None,
    variant: str | None,
    provider: Provider | None,
    device_id: int,
    allow_fallback: bool,
    threads: int | None,
    max_batch: int,
    batch_delay: float | None,
    max_queue: int,
    max_body: int,
    timeout: float,
    watch: bool,
    workers: int,
    ray: str | None,
    replicas: str | None,
    cors: tuple[str, ...],
    api_key_file: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    dockerfile: Path | None,
    log: str,
    log_requests: bool,
) -> int:
    """Answer requests over HTTP, and gRPC: bundles, ready .onnx files, and folders of them.

    It speaks the Open Inference Protocol v2, so that clients of Triton and KServe work unchanged, and takes what people have:
    a picture, a text, a row. What waits while the model runs becomes one call. A model is ready once it has given, here, the
    answers that its bundle promises. /docs shows every route, /metrics what Prometheus reads.

    SIGTERM and Ctrl-C let the last requests end; a second one does not.

    \b
    Examples:
      kit serve mnist-mlp
      kit serve models/ --watch --api-key-file keys.txt --host 0.0.0.0
      kit serve digits=mnist-mlp other=model.onnx --grpc-port 8081
      kit serve mnist-mlp --dockerfile image
      kit serve mnist-mlp --ray auto --replicas 1-4
    """
    from kit.bundle.lookup import find

    sources = models or (str(find(None).origin),)
    if dockerfile is not None:
        options.refuse_unused(ctx, flag="--dockerfile", uses={"models", "dockerfile", "provider"})
        _write_image(sources, dockerfile, gpu=provider not in {None, Provider.CPU})
        return 0
    if provider is None and (device_id or allow_fallback):
        raise UsageError("--device-id and --allow-fallback change nothing on the CPU", hint="add --provider cuda")
    if ray is not None:
        options.refuse_unused(ctx, flag="--ray", uses=_WITH_RAY)
    elif replicas is not None:
        raise UsageError("--replicas are Ray's", hint="add --ray ADDRESS, or use --workers")
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key go together")
    _check_installed(with_grpc=grpc_port is not None)
    from apps.serve import server
    from apps.serve.batcher import Limits
    from apps.serve.guard import Keys
    from apps.serve.model import How

    tls = None if tls_cert is None or tls_key is None else (tls_cert, tls_key)
    if tls is not None:
        _check_tls(*tls)
    settings = server.Settings(
        sources=sources,
        how=How(
            variant=variant,
            provider=None if provider is None else provider.value,
            threads=threads,
            device_id=device_id,
            allow_fallback=allow_fallback,
            limits=Limits(most_rows=max_batch, most_waiting=max_queue, timeout=timeout, delay=batch_delay or 0.0),
        ),
        host=host,
        port=port,
        grpc_port=grpc_port,
        max_body=max_body,
        timeout=timeout,
        cors=cors,
        keys=Keys() if api_key_file is None else Keys.read(api_key_file),
        tls=tls,
        log=log,
        logs_requests=log_requests,
        watch_every=_WATCH_SECONDS if watch else None,
        workers=workers,
    )
    if ray is not None:
        from apps.serve import on_ray

        return on_ray.serve_on_ray(
            settings,
            ray,
            _replicas(replicas or "1"),
            lambda address, names: _say(settings, address, names),
            lambda note: click.echo(f"Note: {note}", err=True),
        )
    return server.serve(settings, lambda address, names: _say(settings, address, names))


def _replicas(text: str) -> int | tuple[int, int]:
    least, is_range, most = text.partition("-")
    try:
        found = int(least), int(most if is_range else least)
    except ValueError:
        found = (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise UsageError(f"--replicas is a number, or two as in 1-4, not {text!r}")
    return found if is_range else found[0]


def _write_image(sources: tuple[str, ...], folder: Path, *, gpu: bool) -> None:
    from apps.cli import render
    from apps.serve import containers

    for path in containers.write(sources, folder, gpu=gpu):
        click.echo(path)
    render.next_steps(
        (f"uv build --wheel -o {folder}", "kit's wheel, from a clone of kit"),
        (f"docker build -t IMAGE {folder}", "where Docker is"),
    )


def _say(settings: Settings, address: str, names: list[str]) -> None:
    from apps.serve.server import LOOPBACK

    key = " -H 'Authorization: Bearer KEY'" if settings.keys else ""
    own = " --insecure" if settings.tls else ""
    curl = f"curl -s{own}{key}"
    click.echo(f"{', '.join(names)} on {address}   ({address}/docs)")
    if settings.grpc_port is not None:
        click.echo(f"gRPC on {settings.host}:{settings.grpc_port}")
    model = f"{address}/v1/models/{names[0]}"
    click.echo(f"\n  {curl} {model}/example | {curl} {model}/predict -H 'content-type: application/json' -d @-\n")
    if settings.host not in LOOPBACK and not settings.keys:
        click.echo(
            f"Warning: {settings.host} is no loopback address, and no key is asked for: whoever reaches this port may use the "
            "models and read what they take and give. Loading and unloading is off.\n"
            "  Next: --api-key-file FILE, or --host 127.0.0.1 behind a proxy",
            err=True,
        )


def _check_installed(*, with_grpc: bool) -> None:
    from importlib.util import find_spec

    from kit.system.packages import install_line

    for extra, modules in (("serve", _MODULES), ("grpc", _GRPC_MODULES if with_grpc else {})):
        missing = [package for module, package in modules.items() if find_spec(module) is None]
        if missing:
            raise PackageMissing(
                f"serving needs {', '.join(missing)}",
                hint=f"{install_line(*missing)}   (it is kit's extra `{extra}`)",
            )


def _check_tls(certificate: Path, key: Path) -> None:
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ssl.SSLError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise BadInput(
            f"{certificate} and {key} are no certificate and its key: {said}", hint="give PEM files"
        ) from error
