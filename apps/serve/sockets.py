"""Connections that cannot hold the server: who sends or reads too slowly is cut off, who left is not computed for."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from apps.serve.guard import WAITING
from apps.serve.quick import Cycle, Quick

_SWEEP_SECONDS = 1.0
_LEAST_BYTES_PER_SECOND = 64 * 1024
_MOST_LINGERING_SECONDS = 5.0


class PatientFor(HttpToolsProtocol):
    """HTTP whose requests must arrive, and whose answers must be read, within bounds of time.

    Attributes:
        quick: Finds what may go past ASGI; None: nothing may.
        patience: Seconds for a request to arrive whole, and a second more for each 64 KiB of it; likewise for an answer.
    """

    patience = 30.0
    quick: Quick | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._began = self.loop.time()
        self._is_arriving = True
        self._has_headers = False
        self._refused_since = self._began
        self._received = 0
        self._most_left = 0
        self._left_since = self._began
        state = self.server_state
        if not hasattr(state, "sweeper"):
            state.sweeper = self.loop.call_later(_SWEEP_SECONDS, _sweep, self.loop, state)  # type: ignore[attr-defined]

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel what the client waited for."""
        scope: dict[str, Any] | None = self.scope  # type: ignore[assignment]
        future = scope.get(WAITING) if scope else None
        super().connection_lost(exc)
        own = _own(self.cycle)
        if own is not None:
            own.release()
        if isinstance(future, asyncio.Future) and not future.done():
            future.cancel()

    def data_received(self, data: bytes) -> None:
        """Count and parse what arrives."""
        self._received += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Note when a request begins."""
        super().on_message_begin()
        self._began = self.loop.time()
        self._is_arriving = True
        self._has_headers = False
        self._received = 0

    def on_headers_complete(self) -> None:
        """Note that a body follows, and begin to answer: the short way if that will do."""
        self._has_headers = True
        before: Any = self.cycle  # None at first
        if self.quick is not None and (before is None or before.response_complete):
            parser = self.parser
            if parser.get_method() == b"POST" and parser.get_http_version() == "1.1" and not self.flow.write_paused:
                cycle = self.quick.cycle(self, self.url, self.headers)
                if cycle is not None:
                    cycle.keep_alive = parser.should_keep_alive()
                    self.cycle = cycle  # type: ignore[assignment]
                    return
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that a request has arrived."""
        super().on_message_complete()
        self._is_arriving = False
        own = _own(self.cycle)
        if own is not None and not own.response_complete:
            own.ask()

    def is_too_slow(self, now: float) -> bool:
        """Whether the client has had its time."""
        left = self.transport.get_write_buffer_size()
        if not left:
            self._most_left, self._left_since = 0, now
        self._most_left = max(self._most_left, left)
        read = self._most_left - left
        if now - self._left_since > self.patience + read / _LEAST_BYTES_PER_SECOND:
            return True
        # A body that was refused is read on and forgotten for a while: a client that is cut off does not see why.
        if not (self._is_arriving and self._has_headers and self.cycle.response_complete):
            self._refused_since = now
        elif now - self._refused_since > min(self.patience, _MOST_LINGERING_SECONDS):
            return True
        return self._is_arriving and now - self._began > self.patience + self._received / _LEAST_BYTES_PER_SECOND


def _own(cycle: object) -> Cycle | None:
    """Return what goes the short way; None if it is uvicorn's."""
    return cycle if isinstance(cycle, Cycle) else None


def _sweep(loop: asyncio.AbstractEventLoop, state: Any) -> None:
    now = loop.time()
    for connection in list(state.connections):
        if isinstance(connection, PatientFor) and connection.is_too_slow(now):
            connection.transport.abort()
    state.sweeper = loop.call_later(_SWEEP_SECONDS, _sweep, loop, state)
