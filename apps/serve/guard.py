"""Who may ask, and how much: keys, and the bodies of requests."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from apps.serve.refusals import Refused, full
from kit.errors import BadInput, UsageError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

WAITING = "kit.waiting"
"""Where a request keeps the future that it waits for, so that a lost connection cancels it."""

_LOCAL = re.compile(rb"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?")
_LEAST_KEY = 16
_MOST_KEY_FILE = 2**20

_HELD_TOGETHER = 8


class Keys:
    """The keys that open the service, as clients send them; none: it is open to whoever reaches it."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    @classmethod
    def read(cls, path: Path) -> Keys:
        """Read a file with a key on each line; what begins with # is a remark.

        Raises:
            BadInput: It cannot be read.
            UsageError: It holds no key, or one that can be guessed.
        """
        try:
            if path.stat().st_size > _MOST_KEY_FILE:
                raise BadInput(f"{path} is too large for a file of keys")
            lines = path.read_text("utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"the keys in {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
        keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not keys:
            raise UsageError(f"{path} holds no key", hint=f"openssl rand -hex 32 > {path}")
        if any(len(key) < _LEAST_KEY for key in keys):
            raise UsageError(f"a key in {path} is shorter than {_LEAST_KEY} characters", hint="openssl rand -hex 32")
        return cls(keys)

    def admits(self, given: bytes | str | None) -> bool:
        """Whether a key opens the service. Every key is compared, in constant time."""
        if not self._digests:
            return True
        raw = given.encode() if isinstance(given, str) else given or b""
        found = hashlib.sha256(raw).digest()
        return sum(hmac.compare_digest(found, digest) for digest in self._digests) > 0

    def check(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Raise Refused 401 unless headers hold a key: `Authorization: Bearer KEY` or `X-API-Key: KEY`."""
        if not self._digests:
            return
        given = None
        for name, value in headers:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                given = value[7:].strip()
            elif name == b"x-api-key":
                given = value.strip()
        if not self.admits(given):
            raise Refused(HTTPStatus.UNAUTHORIZED, "a key is needed: Authorization: Bearer KEY", cause="key")


class Visitors:
    """Keeps pages of strangers out, which a browser on this machine may show: they can send requests to loopback.

    Args:
        origins: Of pages that may ask, such as `https://app.example.com`; `*` for all.
        only_local: Answer to the names of loopback alone, so that no other name can be made to lead here.
    """

    def __init__(self, origins: Sequence[str] = (), *, only_local: bool = False) -> None:
        self._origins = frozenset(origin.rstrip("/").lower().encode() for origin in origins)
        self._only_local = only_local

    def check(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Raise Refused 403 for a page of another origin, or a name that is not loopback's."""
        host = origin = b""
        for name, value in headers:
            if name == b"host":
                host = value.lower()
            elif name == b"origin":
                origin = value.lower()
        if self._only_local and host and not _LOCAL.fullmatch(host):
            raise Refused(HTTPStatus.FORBIDDEN, "this server answers to the name localhost alone", cause="host")
        if origin and origin.partition(b"://")[2] != host and not self._origins & {origin, b"*"}:
            raise Refused(HTTPStatus.FORBIDDEN, "pages of this origin may not ask; see --cors", cause="origin")


class Bodies:
    """Reads bodies of `most` bytes at most, and `most_together` in all requests that are not answered."""

    def __init__(self, most: int, most_together: int) -> None:
        self.most = most
        self._most_together = most_together
        self._held = 0

    @classmethod
    def up_to(cls, most: int) -> Bodies:
        """Return the bounds for bodies of so many bytes: several of them, or many small ones, together."""
        return cls(most, max(_HELD_TOGETHER * most, 2**28))

    async def read(self, length: int | None, receive: Receive) -> bytes | bytearray:
        """Return a body; the caller releases its length. `length` is what the request says, None if it says none.

        Raises:
            Refused: 413 before anything is read, or 503 if too much is held.
            ConnectionError: The client went away.
        """
        self._check(length or 0, self._held + (length or 0))
        body: bytes | bytearray = b""
        held = 0
        try:
            while True:
                message = await receive()
                part = _part(message)
                held += len(part)
                self._held += len(part)  # what has not arrived whole takes memory as well
                self._check(held, self._held)
                if not message.get("more_body"):
                    return body + part if body else part
                body = bytearray(body) if isinstance(body, bytes) else body
                body += part
        except BaseException:
            self._held -= held
            raise

    def hold(self, count: int) -> bool:
        """Count a body of known length before it arrives, if there is room for it."""
        if count > self.most or self._held + count > self._most_together:
            return False
        self._held += count
        return True

    def release(self, count: int) -> None:
        """Forget a body that was answered."""
        self._held -= count

    def _check(self, own: int, together: int) -> None:
        if own > self.most:
            said = f"a request may have {self.most:,} bytes at most"
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, said, cause="too_large")
        if together > self._most_together:
            raise full("too much is being answered")


def _part(message: Mapping[str, Any]) -> bytes:
    if message["type"] == "http.disconnect":
        raise ConnectionResetError
    part: bytes = message.get("body", b"")
    return part
