"""The Open Inference Protocol v2 over gRPC: the same models, queues and keys as over HTTP.

The messages are those of Triton's client package, which any client of the protocol speaks.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb

from apps.serve import protocol
from apps.serve.model import platform_of
from apps.serve.refusals import bad, full, of_error
from apps.serve.repository import READY
from kit.tensors import DATATYPES, Signature

if TYPE_CHECKING:
    from apps.serve.app import App

_CODES = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.UNAUTHORIZED: grpc.StatusCode.UNAUTHENTICATED,
    HTTPStatus.FORBIDDEN: grpc.StatusCode.PERMISSION_DENIED,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT: grpc.StatusCode.DEADLINE_EXCEEDED,
    HTTPStatus.NOT_IMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
}
_CONTENTS = {
    "bool": "bool_contents",
    **dict.fromkeys(("int8", "int16", "int32"), "int_contents"),
    "int64": "int64_contents",
    **dict.fromkeys(("uint8", "uint16", "uint32"), "uint_contents"),
    "uint64": "uint64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
}


_SERVICE = "inference.GRPCInferenceService"
_CALLS = (
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelInfer",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
)


class Service:
    """The protocol's calls; those that are not here are answered as unimplemented."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802 - names of the protocol
        """Say that it lives."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Say whether every model is ready."""
        return pb.ServerReadyResponse(ready=self._app.repository.is_ready and not self._app.is_draining)

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say whether a model is ready."""
        return await self._answered(context, self._model_ready, request)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say what the server is."""
        return await self._answered(context, self._server, request)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say what a model takes and gives."""
        return await self._answered(context, self._metadata, request)

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answer a question."""
        return await self._answered(context, self._infer, request)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        """List all models."""
        return await self._answered(context, self._index, request)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Load a model of the repository folders."""
        return await self._answered(context, self._load, request)

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Unload a model."""
        return await self._answered(context, self._unload, request)

    async def _answered(self, context: Any, call: Callable[[Any], Awaitable[Any]], request: Any) -> Any:
        try:
            self._app.keys.check([(name.encode(), _raw(value)) for name, value in context.invocation_metadata() or ()])
            self._check_open()
            return await call(_given(request))
        except Exception as error:  # noqa: BLE001 - the border: the client is told in words
            refused = of_error(error)
            self._app.figures.failures.labels("", refused.cause).inc()
            if refused.status is HTTPStatus.INTERNAL_SERVER_ERROR:
                self._app.note_failure(error)
        await context.abort(_CODES.get(refused.status, grpc.StatusCode.INTERNAL), refused.message)
        return None

    def _check_open(self) -> None:
        if self._app.is_draining:
            raise full("the server is ending")

    async def _server(self, request: Any) -> Any:  # noqa: ARG002
        return pb.ServerMetadataResponse(**self._app.describe())

    async def _model_ready(self, request: Any) -> Any:
        entry = self._app.repository.entry(request.name, request.version or None)
        return pb.ModelReadyResponse(ready=entry.state == READY)

    async def _metadata(self, request: Any) -> Any:
        repository = self._app.repository
        model = repository.model(request.name, request.version or None)
        versions = repository.versions(model.name)
        return pb.ModelMetadataResponse(
            **protocol.metadata(model.signature, model.name, versions, platform_of(model.describe()))
        )

    async def _index(self, request: Any) -> Any:
        index = self._app.repository.index()
        listed = [one for one in index if one["state"] == READY] if request.ready else index
        return pb.RepositoryIndexResponse(models=[pb.RepositoryIndexResponse.ModelIndex(**one) for one in listed])

    async def _load(self, request: Any) -> Any:
        if request.parameters:
            raise bad("a model is loaded as its folder holds it, without parameters")
        await self._app.control(request.model_name, "load")
        return pb.RepositoryModelLoadResponse()

    async def _unload(self, request: Any) -> Any:
        await self._app.control(request.model_name, "unload")
        return pb.RepositoryModelUnloadResponse()

    async def _infer(self, request: Any) -> Any:
        started = perf_counter()
        model = self._app.repository.model(request.model_name, request.model_version or None)
        tensors = _tensors(request, model.signature)
        wanted = {one.name: True for one in request.outputs} or None
        question = protocol.Question(tensors, request.id, wanted, is_binary=True)
        names = [name for name, _ in protocol.chosen(question, model.signature)]
        answer = await model.queue.submit(tensors)
        self._app.observe(model, started, answer)
        return _response(request.id, model.head, {name: answer.outputs[name] for name in names})


def _response(asked: str, head: Mapping[str, str], outputs: Mapping[str, NDArray[Any]]) -> Any:
    return pb.ModelInferResponse(
        **head,
        id=asked,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
            for name, array in outputs.items()
        ],
        raw_output_contents=[protocol.to_bytes(array) for array in outputs.values()],
    )


def _tensors(request: Any, signature: Signature) -> dict[str, NDArray[Any]]:
    raw = request.raw_input_contents
    if not request.inputs:
        raise bad("the request has no inputs")
    if raw and len(raw) != len(request.inputs):
        raise bad(f"{len(request.inputs)} inputs have {len(raw)} raw contents")
    tensors: dict[str, NDArray[Any]] = {}
    for place, one in enumerate(request.inputs):
        shape = list(one.shape)
        spec = protocol.spec_of(one.name, one.datatype, shape, signature)
        if one.name in tensors:
            raise bad(f"the input {one.name!r} stands twice")
        if one.parameters:
            raise bad(f"{one.name}: shared memory and other parameters are not known here")
        if raw:
            tensors[one.name] = protocol.of_bytes(raw[place], spec, shape)
            continue
        if spec.dtype not in _CONTENTS:
            raise bad(f"{one.name} is {one.datatype}: give it as raw_input_contents")
        values = np.array(getattr(one.contents, _CONTENTS[spec.dtype]))
        if values.size != math.prod(shape):
            raise bad(f"{one.name} of {shape} takes {math.prod(shape)} values, found {values.size}")
        array = values.astype(spec.dtype)
        if spec.dtype not in {"float32", "float64"} and not np.array_equal(array, values):
            raise bad(f"{one.name} holds a number that is no {spec.dtype}")
        tensors[one.name] = array.reshape(shape)
    return tensors


def _raw(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value


def _given(request: Any) -> Any:
    if request is None:
        raise bad("the message is no request of the protocol")
    return request


def _reader(kind: str) -> Callable[[bytes], Any]:
    """Return what reads a message, or gives None: gRPC would tell the client of Python's classes."""
    parse = getattr(pb, kind).FromString

    def read(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return None

    return read


async def start(app: App, address: str, *, most_bytes: int, tls: tuple[bytes, bytes] | None) -> Any:
    """Open a port and return the server; raises OSError if the port is in use."""
    options = [
        ("grpc.max_receive_message_length", most_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.so_reuseport", 0),
    ]
    server = grpc.aio.server(options=options)
    service = Service(app)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(service, name), _reader(f"{name}Request"), getattr(pb, f"{name}Response").SerializeToString
        )
        for name in _CALLS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    try:
        if tls is None:
            server.add_insecure_port(address)
        else:
            certificate, key = tls
            server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
    except RuntimeError as error:
        raise OSError(f"{address} cannot be listened on") from error
    await server.start()
    return server
