"""The short way of a small question: from the parser to the model's queue and back to the socket, with no task in between.

A question of some kilobytes to a model of some microseconds spends most of its time in the server around it. What is plain
enough (HTTP/1.1, a length, no more than SMALL bytes, nothing before it on the connection that is not answered) goes
this way; everything else goes through ASGI. Answers are the same.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING

from apps.serve import protocol
from apps.serve.guard import WAITING

if TYPE_CHECKING:
    from apps.serve.app import App, Reply
    from apps.serve.batcher import Answer
    from apps.serve.sockets import PatientFor

SMALL = 32 * 1024
"""Bytes of a body: below what uvicorn would stop reading at."""

_MOST_ROUTES = 256
_ELSEWHERE = frozenset({b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"})
"""Headers that ask for something that is not done here."""


class _Nothing:
    """Stands for the event by which ASGI waits for a body."""

    def set(self) -> None:
        """Do nothing."""


_NOTHING = _Nothing()


class Cycle:
    """A question on its way; for uvicorn's protocol it is what a request and its response are.

    Attributes:
        body: What has arrived.
        more_body: Whether more is to come.
        keep_alive: Whether the connection stays open after the answer.
        response_complete: Whether it is answered.
        disconnected: Whether the client is gone.
    """

    __slots__ = (
        "_app",
        "_began",
        "_header_length",
        "_held",
        "_model",
        "_outputs",
        "_protocol",
        "_question",
        "_route",
        "body",
        "disconnected",
        "keep_alive",
        "message_event",
        "more_body",
        "response_complete",
    )

    def __init__(
        self,
        app: App,
        connection: PatientFor,
        route: tuple[str, str | None, str],
        length: int,
        header_length: int | None,
    ) -> None:
        self._app, self._protocol, self._route, self._header_length = app, connection, route, header_length
        self._held = length
        self.body = bytearray()
        self.more_body = self.keep_alive = True
        self.response_complete = self.disconnected = False
        self.message_event = _NOTHING

    def ask(self) -> None:
        """Put the question into the queue of its model, once its body has arrived."""
        self._began = perf_counter()
        app = self._app
        try:
            self._model = app.repository.model(self._route[0], self._route[1])
            question = protocol.read(self.body, self._header_length, self._model.signature)
            self._outputs = protocol.chosen(question, self._model.signature)
            self._question = question.id
            future = self._protocol.scope[WAITING] = self._model.queue.submit(question.tensors)  # type: ignore[literal-required]
        except Exception as error:  # noqa: BLE001 - the border: whatever comes, the client is told in words
            self._refuse(error)
            return
        future.add_done_callback(self._answered)

    def release(self) -> None:
        """Forget the body; it counts as held until it is answered, or its client is gone."""
        self._app.release(self._held)
        self._held = 0

    def _answered(self, future: asyncio.Future[Answer]) -> None:
        if future.cancelled():
            self._app.figures.failures.labels("", "client_gone").inc()
            self.release()
            if not self.disconnected:
                self._protocol.transport.abort()
            return
        error = future.exception()
        if error is not None:
            self._refuse(error)
            return
        answer = future.result()
        try:
            said, length = protocol.write(answer.outputs, self._outputs, self._question, self._model.head)
        except Exception as problem:  # noqa: BLE001 - as above
            self._refuse(problem)
            return
        self._app.observe(self._model, self._began, answer)
        kind = (
            b"application/json"
            if length is None
            else b"application/octet-stream\r\ninference-header-content-length: %d" % length
        )
        self._send(b"200 OK", b"content-type: %b\r\nserver-timing: %b" % (kind, answer.timing()), said)

    def _refuse(self, error: BaseException) -> None:
        reply: Reply = self._app.refusal(error, self._route[2])
        status = HTTPStatus(reply.status)
        headers = b"\r\n".join(b"%b: %b" % pair for pair in reply.headers)
        self._send(b"%d %b" % (status.value, status.phrase.encode()), headers, reply.body)

    def _send(self, status: bytes, headers: bytes, body: bytes) -> None:
        self.release()
        self.response_complete = True
        transport = self._protocol.transport
        if self.disconnected or transport.is_closing():
            return
        ending = b"" if self.keep_alive else b"connection: close\r\n"
        transport.write(
            b"HTTP/1.1 %b\r\n%b\r\ncontent-length: %d\r\n%b\r\n%b" % (status, headers, len(body), ending, body)
        )
        if not self.keep_alive:
            transport.close()
        self._protocol.on_response_complete()


class Quick:
    """Finds questions to an app that may go the short way."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._routes: dict[bytes, tuple[str, str | None, str]] = {}

    def cycle(self, connection: PatientFor, url: bytes, headers: list[tuple[bytes, bytes]]) -> Cycle | None:
        """Return a question whose headers have arrived; None if it must go through ASGI."""
        route = self._routes.get(url)
        if route is None:
            route = self._route(url)
            if route is None:
                return None
        length = header_length = -1
        for name, value in headers:
            if name == b"content-length":
                length = int(value) if value.isdigit() and len(value) < 9 else -1
            elif name == protocol.HEADER_LENGTH:
                if not value.isdigit() or len(value) > 8:
                    return None
                header_length = int(value)
            elif name in _ELSEWHERE:
                return None
        if not 0 < length <= SMALL or not self._app.admits(headers) or not self._app.hold(length):
            return None  # through ASGI it is refused in words
        return Cycle(self._app, connection, route, length, None if header_length < 0 else header_length)

    def _route(self, url: bytes) -> tuple[str, str | None, str] | None:
        found = self._app.question_of(url)
        if found is not None:
            if len(self._routes) >= _MOST_ROUTES:
                self._routes.clear()
            self._routes[url] = found
        return found
