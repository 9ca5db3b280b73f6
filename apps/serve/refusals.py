"""What a client is told instead of an answer. Nothing here holds a path, a trace or a version."""

from __future__ import annotations

from http import HTTPStatus

from kit.errors import BadInput, KitError, MemoryShort, UsageError

RETRY_AFTER_SECONDS = 1


class Refused(Exception):  # noqa: N818 - named for what happened
    """A request that gets no answer: HTTP status, message for the client, and its cause, one word for the metrics."""

    def __init__(self, status: HTTPStatus, message: str, *, cause: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.cause = cause or status.phrase.lower().replace(" ", "_")


def bad(message: str) -> Refused:
    """Return a refusal of what the client sent."""
    return Refused(HTTPStatus.BAD_REQUEST, message, cause="bad_request")


def full(message: str) -> Refused:
    """Return a refusal for want of room: the same request may be taken later."""
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, message, cause="full")


def late() -> Refused:
    """Return a refusal at the deadline."""
    return Refused(HTTPStatus.GATEWAY_TIMEOUT, "the deadline passed before the model ran", cause="deadline")


def of_error(error: BaseException) -> Refused:
    """Return what a client is told of an error: the words of kit's own about its tensors, and no others."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, UsageError | BadInput):
        return bad(f"{error}" + (f"; {error.hint}" if error.hint and isinstance(error, UsageError) else ""))
    if isinstance(error, MemoryError | MemoryShort):
        return Refused(HTTPStatus.SERVICE_UNAVAILABLE, "there is too little memory for this request", cause="memory")
    kind = "model" if isinstance(error, KitError) else "defect"
    return Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "the model failed on this request", cause=kind)
