"""The service on a Ray cluster: replicas of `kit serve` behind Ray Serve's door.

For a deployment of one's own, `serve run my_module:app`:

    from apps.serve.on_ray import ray_app

    app = ray_app("mnist-mlp", replicas=(1, 4))
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apps.serve.app import App
from apps.serve.guard import Bodies, Keys, Visitors
from apps.serve.metrics import Figures
from apps.serve.model import How, Model
from apps.serve.repository import ONLY_VERSION, Repository, found, stamp_of
from apps.serve.server import Settings, set_up_log, with_cors
from kit import cluster, ready
from kit.errors import KitError, Unavailable, UsageError
from kit.system import packages

log = logging.getLogger("kit.serve")

APPLICATION = "kit"
"""Name of the application in Ray Serve: a second one of this name takes the first one's place, without a lost request."""
DOORS_OPEN_WITHIN = 90.0
"""Seconds for Ray Serve's doors to open: on a busy machine it starts one that is not ready after 5 s once more."""


@dataclass(frozen=True, kw_only=True)
class _Replicated:
    """What each replica serves; `max_body` in bytes."""

    models: dict[str, cluster.Package]
    how: How = field(default_factory=How)
    keys: Keys = field(default_factory=Keys)
    cors: tuple[str, ...] = ()
    max_body: int = 64 * 2**20


class _Replica:
    """One engine for each model, with the queue of `kit serve`: ready once it has answered the golden samples."""

    async def __init__(self, served: _Replicated) -> None:  # type: ignore[misc]  # as Ray Serve awaits it
        sources = [f"{name}={cluster.arrive(package)}" for name, package in served.models.items()]
        figures = Figures()
        self._repository = Repository(sources, served.how, figures)
        visitors, bodies = Visitors(served.cors, only_local=False), Bodies.up_to(served.max_body)
        app = App(self._repository, figures, served.keys, visitors, bodies, allows_control=False)
        self._answers = with_cors(app, served.cors)
        await app.start()
        if not self._repository.is_ready:
            reasons = "; ".join(
                f"{entry.name}: {entry.reason}" for entry in self._repository.entries if not entry.model
            )
            raise RuntimeError(f"a model is not ready: {reasons}")

    def __serve_build_asgi_app__(self) -> Any:
        return self._answers

    async def check_health(self) -> None:
        """Raise unless every model is ready, as Ray Serve wants it said."""
        if not self._repository.is_ready:
            raise RuntimeError("a model is not ready")


def ray_app(
    *models: str,
    replicas: int | tuple[int, int] = 1,
    how: How | None = None,
    keys: Keys | None = None,
    cors: Sequence[str] = (),
    max_body: int = 64 * 2**20,
    timeout: float = 30.0,
) -> Any:
    """Return an application of Ray Serve: the Open Inference Protocol and kit's own routes, as `kit serve` has them.

    Args:
        models: Bundles, packed bundles or ready .onnx files; `NAME=MODEL` gives a name.
        replicas: How many, or the fewest and the most for Ray Serve to choose from by the requests that wait.
        how: How each replica opens them.
        keys: That open the service.
        cors: Origins that browsers may ask from.
        max_body: Bytes of a request.
        timeout: Seconds that a replica which ends has for its last requests.

    Raises:
        UsageError: No models, or several versions of one: Ray replaces one by the next.
        PackageMissing: Ray is not installed.
    """
    serve = _ray_serve()
    how = how or How()
    listed = [one for model in models for one in found(model)]
    if not listed:
        raise UsageError("there is no model to serve", hint='ray_app("mnist-mlp")')
    if any(version != ONLY_VERSION for _, version, _ in listed) or len({name for name, _, _ in listed}) < len(listed):
        raise UsageError("a cluster serves one version of each model", hint="give the file of that version: NAME=PATH")
    served = _Replicated(
        models={name: cluster.ship(ready.find(path)) for name, _, path in listed},
        how=how,
        keys=keys or Keys(),
        cors=tuple(cors),
        max_body=max_body,
    )
    least, most = replicas if isinstance(replicas, tuple) else (replicas, replicas)
    amount: dict[str, Any] = {"num_replicas": least}
    if most > least:
        waiting = {"target_ongoing_requests": how.limits.most_rows}
        amount = {"autoscaling_config": {"min_replicas": least, "max_replicas": most, **waiting}}
    deployment = serve.deployment(
        serve.ingress()(_Replica),
        name="models",
        max_ongoing_requests=how.limits.most_waiting,
        graceful_shutdown_timeout_s=timeout,
        ray_actor_options=_resources(how),
        **amount,
    )
    return deployment.bind(served)


def _resources(how: How) -> dict[str, float]:
    gpus = {} if how.provider in {None, "cpu"} else {"num_gpus": 1}
    return {"num_cpus": how.threads or 1, **gpus}


def _ray_serve() -> Any:
    return packages.needed("ray.serve", distribution="ray", purpose="a cluster", extra="ray")


def serve_on_ray(
    settings: Settings,
    address: str,
    replicas: int | tuple[int, int],
    on_listening: Callable[[str, list[str]], None],
    on_note: Callable[[str], None],
) -> int:
    """Serve on a cluster until a signal; returns the exit code.

    Raises:
        VerifyFailed: A model does not give here what its bundle promises.
        PackageMissing, Unavailable, UsageError: As kit.cluster says, or the replicas did not become ready.
    """
    if settings.port == 0:
        raise UsageError("a cluster needs a port that is known", hint="leave --port 0 out")
    set_up_log(settings.log)
    deployment = _Deployment(settings, replicas)
    deployment.prove()
    joined = cluster.connect(address)
    least = replicas if isinstance(replicas, int) else replicas[0]
    resources = _resources(settings.how)
    joined.check(workers=least, cpus_each=int(resources["num_cpus"]), gpus_each=int(resources.get("num_gpus", 0)))
    serve = _ray_serve()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # what it begins and ends is said by kit
    was_there = bool(serve.status().proxies)
    serve.start(http_options={"host": settings.host, "port": settings.port})
    try:
        host, port = _listens(settings)
        notes = joined.notes()
        if (host, port) != (settings.host, settings.port):
            notes.append(f"Ray Serve runs there already and keeps its address, {host}:{port}")
        for note in notes:
            on_note(note)
        deployment.deploy()
        _await_doors(host, port)
        ending = _at_signal()
        on_listening(f"http://{host}:{port}", [name for name, _, _ in deployment.models()])
        while not ending.wait(settings.watch_every):
            deployment.look()
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone
            deployment.leave()
            if not was_there and not serve.status().applications:
                serve.shutdown()
    return 0


def _listens(settings: Settings) -> tuple[str, int]:
    """Return where Ray Serve listens: one that ran before keeps its own address."""
    from ray.serve import context

    client: Any = context._get_global_client()  # noqa: SLF001 - nothing else tells
    options = getattr(client, "http_config", None)
    return (options.host, options.port) if options is not None else (settings.host, settings.port)


def _await_doors(host: str, port: int) -> None:
    """Wait until each node's door is open: Ray Serve deploys before; raises Unavailable if one stays shut."""
    import ray

    own = ray.get_runtime_context().get_node_id()
    until = time.monotonic() + DOORS_OPEN_WITHIN
    while True:
        doors = _ray_serve().status().proxies
        are_ready = bool(doors) and not {"STARTING", "UNHEALTHY"} & set(doors.values())
        # Connections were refused although all proxies were called healthy: where one is on this node, try it.
        if are_ready and (own not in doors or _is_open(host, port)):
            return
        if time.monotonic() > until:
            raise Unavailable(
                f"Ray Serve's proxies do not become ready within {DOORS_OPEN_WITHIN:.0f} s",
                hint="see whether the port is free on each node, or give another: --port",
            )
        time.sleep(0.1)


def _is_open(host: str, port: int) -> bool:
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - an address to ask, none to listen on
    with contextlib.suppress(OSError), socket.create_connection((everywhere.get(host, host), port), timeout=5):
        return True
    return False


def _at_signal() -> threading.Event:
    """Return what is set by the first SIGTERM or Ctrl-C; a second one ends the process as usual."""
    ending = threading.Event()

    def end(number: int, _frame: Any) -> None:
        ending.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return ending


class _Deployment:
    """The application as this process deployed it; another process may take its place."""

    def __init__(self, settings: Settings, replicas: int | tuple[int, int]) -> None:
        self._settings, self._replicas = settings, replicas
        self._stamps: list[tuple[int, ...]] = []
        self._own = 0.0

    def models(self) -> list[tuple[str, str, Path]]:
        return [one for source in self._settings.sources for one in found(source)]

    def prove(self) -> None:
        """Open every model here: Ray Serve ends old replicas before it knows whether new ones become ready.

        Raises:
            VerifyFailed: One does not give here what its bundle promises.
            KitError: One cannot be opened.
        """
        for name, version, path in self.models():
            Model.opened(name, version, path, self._settings.how).close()

    def deploy(self) -> None:
        """Bring the application up in place of the one before; raises Unavailable if replicas do not become ready."""
        settings = self._settings
        self._stamps = self._stamps_now()
        app = ray_app(
            *settings.sources,
            replicas=self._replicas,
            how=settings.how,
            keys=settings.keys,
            cors=settings.cors,
            max_body=settings.max_body,
            timeout=settings.timeout,
        )
        try:
            _ray_serve().run(app, name=APPLICATION)
        except RuntimeError as error:
            said = [line for line in str(error).splitlines() if line.strip()]
            raise Unavailable(
                f"the replicas do not become ready: {said[-1].strip() if said else 'Ray Serve does not say why'}",
                hint="try the model on one machine: kit serve, without --ray",
            ) from error
        self._own = _deployed()

    def look(self) -> None:
        """Serve files that changed, once they are proved here; the log says what became of it."""
        if not self._is_own():
            return
        try:
            now = self._stamps_now()
        except (KitError, OSError):  # in the middle of being replaced: looked at again
            return
        if now == self._stamps or not all(now):
            return
        self._stamps = now  # not tried again until it changes
        try:
            self.prove()
        except (KitError, OSError) as error:
            self._say("not loaded", problem=str(error), kept_old=True)
            return
        try:
            self.deploy()
        except (KitError, RuntimeError, OSError) as error:
            self._say("not loaded", problem=str(error))
        else:
            log.info("replaced", extra={"fields": {"models": ", ".join(self._settings.sources)}})

    def leave(self) -> None:
        if self._is_own():
            _ray_serve().delete(APPLICATION)

    def _is_own(self) -> bool:
        return self._own != 0.0 and _deployed() == self._own

    def _stamps_now(self) -> list[tuple[int, ...]]:
        return [stamp_of(path) for _, _, path in self.models()]

    def _say(self, event: str, **fields: Any) -> None:
        log.error(event, extra={"fields": fields})


def _deployed() -> float:
    application = _ray_serve().status().applications.get(APPLICATION)
    return application.last_deployed_time_s if application is not None else 0.0
