"""Run the service: sockets, TLS, signals, workers, the log."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from apps.serve import metrics
from apps.serve.guard import Bodies, Keys, Visitors
from apps.serve.model import How, Model
from apps.serve.quick import Quick
from apps.serve.repository import Opened, Repository, found, stamp_of
from apps.serve.sockets import PatientFor
from kit.errors import KitError, Unavailable, UsageError
from kit.report.words import plain

log = logging.getLogger("kit.serve")

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
BACKLOG = 2048
_LAST_PORT = 65535
_RESTART_SECONDS = 1.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that `kit serve` was told.

    Attributes:
        sources: Bundles, .onnx files and folders of them.
        port: Of HTTP; 0 for any that is free.
        grpc_port: Of gRPC; None for none.
        max_body: Bytes of a request.
        timeout: Seconds for a request to arrive, to wait, and for the last ones when the server ends.
        tls: Files of the certificate and its key.
        log: `text` or `json`.
        logs_requests: A line for each request.
        watch_every: Seconds between looks at the files; None for none.
    """

    sources: tuple[str, ...]
    how: How = field(default_factory=How)
    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    max_body: int = 64 * 2**20
    timeout: float = 30.0
    cors: tuple[str, ...] = ()
    keys: Keys = field(default_factory=Keys)
    tls: tuple[Path, Path] | None = None
    log: str = "text"
    logs_requests: bool = False
    watch_every: float | None = None
    workers: int = 1


class _Server(uvicorn.Server):
    """Uvicorn, that tells the app when it drains, and stops at the second signal, whichever it is."""

    def __init__(self, config: uvicorn.Config, app: Any) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.should_exit:
            self.force_exit = True
        self._app.is_draining = True
        super().handle_exit(sig, frame)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals, and end quietly: uvicorn would raise them again, and an exit code of a signal says failure."""
        with super().capture_signals():
            try:
                yield
            finally:
                self._captured_signals.clear()


def serve(settings: Settings, on_listening: Callable[[str, list[str]], None]) -> int:
    """Serve until a signal; returns the exit code. `on_listening` is told address and names before models are opened.

    Raises:
        UsageError: Sources that are no models.
        Unavailable: The port is in use.
    """
    set_up_log(settings.log)
    names = list(dict.fromkeys(name for source in settings.sources for name, _, _ in found(source)))
    listening = listen(settings.host, settings.port)
    try:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        on_listening(f"{'https' if settings.tls else 'http'}://{host}:{listening.getsockname()[1]}", names)
        if settings.workers == 1:
            return _work(settings, listening, {})
        return _supervise(settings, listening)
    finally:
        listening.close()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raises Unavailable if the port is in use, or the address is not of this machine."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, number)
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and port < _LAST_PORT:
            hint = f"kit serve ... --port {port + 1}"
        else:
            hint = "give an address of this machine, and a port that you may use: --host, --port"
        raise Unavailable(f"{host}:{port} cannot be listened on: {error.strerror or error}", hint=hint) from error
    return listening


def _work(settings: Settings, listening: socket.socket, opened: Opened) -> int:
    from apps.serve.app import App
    from apps.serve.metrics import Figures

    figures = Figures()
    repository = Repository(settings.sources, settings.how, figures, opened=opened)
    app = App(
        repository,
        figures,
        settings.keys,
        Visitors(settings.cors, only_local=settings.host in LOOPBACK),
        Bodies.up_to(settings.max_body),
        allows_control=bool(settings.keys) or settings.host in LOOPBACK,
        watch_every=settings.watch_every,
        logs_requests=settings.logs_requests,
    )
    if settings.grpc_port is not None:
        app.also = _grpc(settings)
    # What is added to each answer, or written about each request, is added and written on the way through ASGI.
    quick = None if settings.cors or settings.logs_requests else Quick(app)
    config = uvicorn.Config(
        with_cors(app, settings.cors),
        http=type("Patient", (PatientFor,), {"patience": settings.timeout, "quick": quick}),
        ws="none",
        loop=_loop(),
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=max(round(settings.timeout), 1),
        ssl_certfile=str(settings.tls[0]) if settings.tls else None,
        ssl_keyfile=str(settings.tls[1]) if settings.tls else None,
    )
    server = _Server(config, app)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    except SystemExit:
        if app.failure is None:
            raise
        raise Unavailable(str(app.failure), hint="give another --grpc-port") from app.failure
    return 1 if server.force_exit else 0


def _grpc(settings: Settings) -> Any:
    from apps.serve import rpc

    port = settings.grpc_port
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    tls = None if settings.tls is None else (settings.tls[0].read_bytes(), settings.tls[1].read_bytes())

    async def opened(app: Any) -> Any:
        return await rpc.start(app, f"{host}:{port}", most_bytes=settings.max_body, tls=tls)

    return opened


def with_cors(app: Any, origins: Sequence[str]) -> Any:
    """Return an app that pages of some origins may ask; the app itself if there are none."""
    if not origins:
        return app
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "inference-header-content-length", "x-api-key"],
        expose_headers=["inference-header-content-length", "server-timing"],
    )


def _loop() -> Any:
    try:
        import uvloop  # noqa: F401 - its presence alone
    except ImportError:
        return "asyncio"
    return "uvloop"


def _supervise(settings: Settings, listening: socket.socket) -> int:
    """Run workers on one socket, begin one anew that ends by itself, and pass signals on."""
    if not hasattr(os, "fork"):
        raise UsageError("several workers need a system that forks", hint="leave --workers out")
    if settings.grpc_port is not None:
        raise UsageError("gRPC's port belongs to one process", hint="leave --workers or --grpc-port out")
    with tempfile.TemporaryDirectory(prefix="kit-serve-") as folder:
        metrics.share(folder)
        opened = _open_once(settings)
        context = multiprocessing.get_context("fork")
        workers: list[Any] = []
        ending: list[int] = []

        def end(number: int, _frame: Any) -> None:
            ending.append(number)
            for worker in workers:
                if worker.pid is not None and worker.is_alive():
                    os.kill(worker.pid, signal.SIGTERM)

        def begin(place: int) -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # one that came now would miss this worker
            try:
                if not ending:
                    workers[place : place + 1] = [_begin(context, settings, listening, opened)]
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

        for number in _SIGNALS:
            signal.signal(number, end)
        for place in range(settings.workers):
            begin(place)
        _keep_alive(workers, begin, ending)
        return 0 if len(ending) == 1 else 1


def _keep_alive(workers: list[Any], begin: Callable[[int], None], ending: Sequence[int]) -> None:
    """Begin a worker anew that ends by itself, until all have ended because they were told to."""
    while not ending or any(worker.is_alive() for worker in workers):
        for place, worker in enumerate(list(workers)):
            worker.join(0.1)
            if worker.exitcode is None or ending:
                continue
            log.error("a worker ended", extra={"fields": {"exit_code": worker.exitcode}})
            metrics.forget(worker.pid)
            time.sleep(_RESTART_SECONDS)
            begin(place)


def _begin(context: Any, settings: Settings, listening: socket.socket, opened: Opened) -> Any:
    worker = context.Process(target=_worker, args=(settings, listening, opened))
    worker.start()
    return worker


def _worker(settings: Settings, listening: socket.socket, opened: Opened) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the supervisor passes on SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    sys.exit(_work(settings, listening, dict(opened)))


def _open_once(settings: Settings) -> Opened:
    """Open models before the workers begin, so that all share their memory: those that have no own threads."""
    # A session of ONNX Runtime with one thread survives a fork; pools of threads do not.
    from apps.serve.metrics import Figures

    if (settings.how.threads or 1) > 1 or settings.how.provider not in {None, "cpu"}:
        return {}
    opened: Opened = {}
    for entry in Repository(settings.sources, settings.how, Figures()).entries:
        stamp = stamp_of(entry.source)
        try:
            model = Model.opened(entry.name, entry.version, entry.source, settings.how)
        except (KitError, OSError):  # each worker says what is wrong with it
            continue
        if model.engine.runtime != "onnxruntime" or threading.active_count() > 1 or _threads() > 1:
            model.close()
            continue
        opened[entry.source, stamp] = model
    return opened


def _threads() -> int:
    try:
        return sum(1 for _ in Path("/proc/self/task").iterdir())
    except OSError:
        return 2  # not known: as if there were others


class _Lines(logging.Formatter):
    """Events as lines: words for people, or JSON for machines."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        said = record.getMessage()
        if self._as_json:
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{record.msecs:03.0f}Z"
            whole = {"time": moment, "level": record.levelname.lower(), "event": said, **fields}
            if record.exc_info and record.levelno >= logging.ERROR:
                whole["trace"] = self.formatException(record.exc_info)
            return json.dumps(whole, ensure_ascii=True, default=str)
        told = "  ".join(f"{name} {plain(str(value))}" for name, value in fields.items() if value not in {"", None})
        line = f"{said}: {told}" if told else said
        return line if not record.exc_info else f"{line}\n{self.formatException(record.exc_info)}"


def set_up_log(form: str) -> None:
    """Send events to stderr; what uvicorn says of itself only if it is a warning."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(as_json=form == "json"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    ours = logging.getLogger("uvicorn.error")
    ours.handlers[:] = [handler]
    ours.setLevel(logging.WARNING)
    ours.propagate = False
