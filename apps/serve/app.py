"""The service as one ASGI callable: routes, and what each answers."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from typing import Any

import orjson

from apps.serve import openapi, people, protocol
from apps.serve.batcher import Answer
from apps.serve.guard import WAITING, Bodies, Keys, Receive, Scope, Send, Visitors
from apps.serve.metrics import CONTENT_TYPE, Figures
from apps.serve.model import Model, platform_of
from apps.serve.refusals import RETRY_AFTER_SECONDS, Refused, bad, of_error
from apps.serve.repository import READY, Repository

log = logging.getLogger("kit.serve")

_MODEL = re.compile(r"/(v[12])/models/([A-Za-z0-9._-]+)(?:/versions/([0-9]+))?(?:/([a-z]+))?")
_CONTROL = re.compile(r"/v2/repository/models/([A-Za-z0-9._-]+)/(load|unload)")
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_EXTENSIONS = ["binary_tensor_data", "model_repository"]
_OPEN = frozenset({"/v2/health/live", "/v2/health/ready"})
"""What needs no key: who asks whether a server lives has none."""


@dataclass(slots=True)
class Reply:
    """An answer to a request; `headers` are those beside its length."""

    body: bytes = b""
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)


def as_json(value: Any, status: int = 200) -> Reply:
    """Return a value as a reply; arrays of numpy are taken."""
    return Reply(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status)


class App:
    """The service.

    Args:
        repository: Models.
        figures: Metrics.
        keys: That open it.
        visitors: Which pages of browsers may ask.
        bodies: Bounds of requests.
        allows_control: Whether clients may load and unload models.
        watch_every: Seconds between looks at the files of models; None for none.
        logs_requests: Whether each request is a line of the log.

    Attributes:
        also: Opens another door to the same models when the server starts, such as gRPC; what it gives is stopped at the end.
        is_draining: The server answers what it has, and takes no more.
        failure: Why it could not begin.
    """

    def __init__(
        self,
        repository: Repository,
        figures: Figures,
        keys: Keys,
        visitors: Visitors,
        bodies: Bodies,
        *,
        allows_control: bool,
        watch_every: float | None = None,
        logs_requests: bool = False,
    ) -> None:
        self.repository = repository
        self.figures = figures
        self.keys = keys
        self._visitors = visitors
        self._bodies = bodies
        self._allows_control = allows_control
        self._watch_every = watch_every
        self._logs_requests = logs_requests
        self._tasks: list[asyncio.Task[Any]] = []
        self.is_draining = False
        self.also: Callable[[App], Awaitable[Any]] | None = None
        self._other: Any = None
        self.failure: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or follow the server's life, as ASGI has it."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await send({"type": "websocket.close"})

    async def start(self) -> None:
        """Open the models, and watch their files if that was asked."""
        await self.repository.load_all()
        gc.collect()
        gc.freeze()  # what lives as long as the server is not looked through again while requests wait
        if self._watch_every is not None:
            self._tasks.append(asyncio.create_task(self.repository.watch(self._watch_every)))

    async def stop(self) -> None:
        """Answer what was taken and close the models."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._other is not None:
            await self._other.stop(grace=5)
        await self.repository.close()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            if self.also is not None:
                self._other = await self.also(self)
        except OSError as error:
            self.failure = error
            await send({"type": "lifespan.startup.failed"})
            return
        opening = asyncio.create_task(self.start())  # it lives at once, and is ready when its models are
        self._tasks.append(opening)
        await send({"type": "lifespan.startup.complete"})
        try:
            await receive()
        except asyncio.CancelledError:  # stopped by a second signal
            return
        await self.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = perf_counter()
        path = scope["path"]
        try:
            if path not in _OPEN:
                if self.keys:
                    self.keys.check(scope["headers"])  # which no page of a stranger has
                else:
                    self._visitors.check(scope["headers"])
            reply = await self._route(scope, receive, path)
        except ConnectionError:
            self.figures.failures.labels("", "client_gone").inc()
            return
        except asyncio.CancelledError:
            if not self.is_draining:
                if not scope.get(WAITING) or not scope[WAITING].cancelled():
                    raise
                self.figures.failures.labels("", "client_gone").inc()
                return
            reply = self.refusal(Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the server is ending", cause="ending"), path)
        except Exception as error:  # noqa: BLE001 - the border: whatever comes, the client is told in words
            reply = self.refusal(error, path)
        length = (b"content-length", b"%d" % len(reply.body))
        await send({"type": "http.response.start", "status": reply.status, "headers": [*reply.headers, length]})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})
        if self._logs_requests:
            taken = round((perf_counter() - started) * 1e3, 3)
            said = {"method": scope["method"], "path": path[:200], "status": reply.status, "ms": taken}
            log.info("request", extra={"fields": said})

    def refusal(self, error: BaseException, path: str) -> Reply:
        """Return what a client is told instead of an answer, and count it."""
        refused = of_error(error)
        found = _MODEL.fullmatch(path)
        name = found[2] if found and self.repository.knows(found[2]) else ""  # strangers' names would never end
        self.figures.failures.labels(name, refused.cause).inc()
        if refused.status is HTTPStatus.INTERNAL_SERVER_ERROR:
            self.note_failure(error)
        headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)
        if refused.status is HTTPStatus.SERVICE_UNAVAILABLE:
            headers = (_JSON, (b"retry-after", b"%d" % RETRY_AFTER_SECONDS))
        elif refused.status is HTTPStatus.UNAUTHORIZED:
            headers = (_JSON, (b"www-authenticate", b"Bearer"))
        body = orjson.dumps({"error": refused.message.encode("utf-8", "replace").decode()})
        return Reply(body, refused.status.value, headers)

    async def _route(self, scope: Scope, receive: Receive, path: str) -> Reply:
        method = scope["method"]
        found = _MODEL.fullmatch(path)
        if found is not None:
            api, name, version, verb = found.groups()
            if api == "v2" and verb == "infer":
                _only(method, "POST")
                return await self._infer(name, version, scope, receive)
            if api == "v1" and verb == "predict":
                _only(method, "POST")
                return await self._predict(name, version, scope, receive)
            _only(method, "GET", "HEAD")
            return self._about(api, name, version, verb)
        if path.startswith("/v2/repository/"):
            _only(method, "POST")
            return await self._control(path, scope, receive)
        _only(method, "GET", "HEAD")
        return self._plain(path)

    async def _infer(self, name: str, version: str | None, scope: Scope, receive: Receive) -> Reply:
        started = perf_counter()
        length, header_length, _, encoding = _lengths(scope["headers"])
        if encoding:
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "compressed requests are not taken")
        self.repository.model(name, version)  # before the body is read
        body = await self._bodies.read(length, receive)
        try:
            model = self.repository.model(name, version)  # it may have been replaced meanwhile
            question = protocol.read(body, header_length, model.signature)
            outputs = protocol.chosen(question, model.signature)
            future = scope[WAITING] = model.queue.submit(question.tensors)
            answer = await future
            said, said_length = protocol.write(answer.outputs, outputs, question.id, model.head)
        finally:
            self._bodies.release(len(body))
        self.observe(model, started, answer)
        timing = (b"server-timing", answer.timing())
        if said_length is None:
            return Reply(said, 200, (_JSON, timing))
        return Reply(said, 200, (_BINARY, (protocol.HEADER_LENGTH, b"%d" % said_length), timing))

    async def _predict(self, name: str, version: str | None, scope: Scope, receive: Receive) -> Reply:
        started = perf_counter()
        length, _, kind, encoding = _lengths(scope["headers"])
        if encoding:
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "compressed requests are not taken")
        self.repository.model(name, version)
        body = await self._bodies.read(length, receive)
        try:
            with self.repository.model(name, version).used() as model:
                loop = asyncio.get_running_loop()
                calls = await loop.run_in_executor(model.items, people.encoded, model, body, kind)
                answers = [await self._ask(model, inputs, scope) for inputs in calls]
                records = await loop.run_in_executor(model.items, people.records, model, answers, calls)
        finally:
            self._bodies.release(len(body))
        self.observe(model, started, answers[0])
        reply = as_json({**model.head, "predictions": records})
        reply.headers = (_JSON, (b"server-timing", answers[0].timing()))
        return reply

    def admits(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether who sends these headers may ask."""
        try:
            (self.keys or self._visitors).check(headers)
        except Refused:
            return False
        return True

    def hold(self, count: int) -> bool:
        """Count a body that arrives, if there is room for it; `release` forgets it."""
        return self._bodies.hold(count)

    def release(self, count: int) -> None:
        """Forget a body that was answered."""
        self._bodies.release(count)

    def question_of(self, url: bytes) -> tuple[str, str | None, str] | None:
        """Return name and version of the model that a URL asks, and the path; None if it is another route, or no such model."""
        path = url.decode("latin-1")
        found = _MODEL.fullmatch(path)
        if found is None or found[1] != "v2" or found[4] != "infer" or not self.repository.knows(found[2]):
            return None
        return found[2], found[3], path

    def observe(self, model: Model, started: float, answer: Answer) -> None:
        """Count an answer in the metrics."""
        figures = model.figures
        if figures is not None:
            figures.latency.observe(perf_counter() - started)
            figures.queue.observe(answer.queue_us * 1e-6)

    def note_failure(self, error: BaseException) -> None:
        """Write a failure of ours into the log."""
        log.error("failed", extra={"fields": {"problem": repr(error)[:1000]}}, exc_info=error)

    async def _ask(self, model: Model, tensors: Mapping[str, Any], scope: Scope) -> Answer:
        future = model.queue.submit(tensors)
        scope[WAITING] = future
        return await future

    def _about(self, api: str, name: str, version: str | None, verb: str | None) -> Reply:
        entry = self.repository.entry(name, version)
        if api == "v2" and verb == "ready":
            return Reply(b"", 200 if entry.state == READY else 503)
        if api == "v2" and verb is None:
            model = self.repository.model(name, version)
            versions = self.repository.versions(name)
            platform = platform_of(model.describe())
            return as_json(protocol.metadata(model.signature, name, versions, platform))
        if api == "v1" and verb == "schema":
            return as_json(people.schema(self.repository.model(name, version)))
        if api == "v1" and verb == "example":
            example = people.predict_example(self.repository.model(name, version))
            if example is None:
                raise Refused(HTTPStatus.NOT_FOUND, "this model's items are no JSON; its schema has a request to infer")
            return as_json(example)
        raise Refused(HTTPStatus.NOT_FOUND, "there is no such route", cause="unknown_route")

    async def _control(self, path: str, scope: Scope, receive: Receive) -> Reply:
        body = await self._bodies.read(_lengths(scope["headers"])[0], receive)
        self._bodies.release(len(body))
        asked = _object(body)
        if path == "/v2/repository/index":
            index = self.repository.index()
            return as_json([one for one in index if one["state"] == READY] if asked.get("ready") is True else index)
        found = _CONTROL.fullmatch(path)
        if found is None:
            raise Refused(HTTPStatus.NOT_FOUND, "there is no such route", cause="unknown_route")
        parameters = asked.get("parameters") or {}
        if not isinstance(parameters, dict) or set(parameters) - {"unload_dependents"}:
            raise bad("a model is loaded as its folder holds it, without parameters")
        if not self.keys and any(header == b"origin" for header, _ in scope["headers"]):
            said = "pages in a browser load and unload models with a key alone"
            raise Refused(HTTPStatus.FORBIDDEN, said, cause="key")
        await self.control(found[1], found[2])
        return Reply(b"", 200)

    async def control(self, name: str, verb: str) -> None:
        """Load or unload a model.

        Raises:
            Refused: 403: whoever reaches this server may not; 404: no folder holds it; 400: it does not load.
        """
        if not self._allows_control:
            raise Refused(HTTPStatus.FORBIDDEN, "models are loaded and unloaded with a key alone", cause="key")
        await (self.repository.load(name) if verb == "load" else self.repository.unload(name))

    def _plain(self, path: str) -> Reply:
        if path == "/v2/health/live":
            return Reply(b"", 200)
        if path == "/v2/health/ready":
            return Reply(b"", 200 if self.repository.is_ready and not self.is_draining else 503)
        if path in {"/v2", "/v2/"}:
            return as_json(self.describe())
        if path == "/v1/models":
            return as_json({"models": self.repository.index()})
        if path == "/metrics":
            self._count_waiting()
            return Reply(self.figures.text(), 200, ((b"content-type", CONTENT_TYPE.encode()),))
        if path == "/openapi.json":
            return as_json(openapi.document(self.repository, needs_key=bool(self.keys)))
        page = openapi.page(path)
        if page is not None:
            return Reply(page[0], 200, ((b"content-type", page[1].encode()), *openapi.SAFE_HEADERS))
        if path == "/":
            return Reply(b"", 307, ((b"location", b"/docs"),))
        raise Refused(HTTPStatus.NOT_FOUND, "there is no such route", cause="unknown_route")

    def describe(self) -> dict[str, Any]:
        """Return the protocol's metadata of a server; its version is that of the protocol."""
        return {"name": "kit", "version": "2", "extensions": _EXTENSIONS}

    def _count_waiting(self) -> None:
        for entry in self.repository.entries:
            if entry.model is not None and entry.model.figures is not None:
                entry.model.figures.waiting.set(entry.model.queue.waiting)


def _only(method: str, *allowed: str) -> None:
    if method not in allowed:
        raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, f"this route takes {' and '.join(allowed)}", cause="method")


def _lengths(headers: Sequence[tuple[bytes, bytes]]) -> tuple[int | None, int | None, str, bool]:
    """Return the length of a body, that of its JSON, its kind, and whether it is compressed."""
    length = header_length = None
    kind, encoding = "", False
    for name, value in headers:
        if name == b"content-length":
            length = _whole(value)
        elif name == protocol.HEADER_LENGTH:
            header_length = _whole(value)
        elif name == b"content-type":
            kind = value.decode("latin-1").partition(";")[0].strip().lower()
        elif name == b"content-encoding":
            encoding = value.lower() not in {b"", b"identity"}
    return length, header_length, kind, encoding


def _whole(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise bad("a length in the headers is no whole number")
    return int(value)


def _object(body: bytes | bytearray) -> dict[str, Any]:
    if not body.strip():
        return {}
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad(f"the request is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise bad("the request must be a JSON object")
    return found
