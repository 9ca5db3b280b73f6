"""ONNX Runtime behind the Runner protocol, strict about where it runs. The only room of kit/ that imports onnxruntime.

Asked for CUDA, ONNX Runtime gives a CPU session and a warning where CUDA cannot load. Here three locks forbid that: only
the wanted provider is listed, `session.disable_cpu_ep_fallback` refuses nodes it cannot run, and the placement of every
node is read back and checked. TF32, on by default in the CUDA provider, is switched off, so that CPU and GPU agree.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kit import packages
from kit.errors import BundleInvalid, PackageMissing, ProviderUnavailable, UsageError
from kit.runtime import libraries
from kit.runtime.base import ClosingRunner, Logits, Pixels, Placement, RunnerOptions
from kit.spec import Provider

_CPU_FALLBACK = "session.disable_cpu_ep_fallback"
_RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
_QUIET = 4  # fatal only: what matters is raised, with words of our own


class OnnxRuntimeRunner(ClosingRunner):
    """An ONNX model opened in ONNX Runtime.

    Args:
        model: The ONNX file's bytes; external data is not followed.
        options: Provider, threads, device.

    Raises:
        PackageMissing: No ONNX Runtime is installed.
        ProviderUnavailable: The provider cannot run here, or not all of the model; the message says why.
        BundleInvalid: ONNX Runtime does not accept the model.
    """

    runtime = "onnxruntime"

    def __init__(self, model: bytes, options: RunnerOptions | None = None) -> None:
        self._options = options or RunnerOptions()
        self.provider = self._options.provider
        self.fallback_reason = ""
        self._session: Any = self._open(model)
        self._input = self._session.get_inputs()[0].name
        self._outputs = [self._session.get_outputs()[0].name]
        self.placement = _placement(self._session)
        self._check_placement()

    def run(self, pixels: Pixels) -> Logits:
        """Compute logits float32 `[N, classes]` for pixels uint8 `[N, *input shape]`.

        Raises:
            ProviderUnavailable: CUDA failed while running, for want of memory for instance.
            BundleInvalid: The graph does not run with these inputs.
            UsageError: The runner was closed.
        """
        if self._session is None:
            raise UsageError("this runner was closed")
        try:
            logits: Logits = self._session.run(self._outputs, {self._input: pixels})[0]
        except _theirs() as error:
            kind = BundleInvalid if self.provider is Provider.CPU else ProviderUnavailable
            raise kind(f"ONNX Runtime could not run the model on {self.provider}: {_words(error)}") from error
        return logits

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _open(self, model: bytes) -> Any:
        if self.provider is Provider.CPU:
            return _session(model, self._options, ["CPUExecutionProvider"], strict=False)
        problem = cuda_problem(self._options.device_id)
        if problem is None:
            return self._open_cuda(model)
        if not self._options.allow_fallback:
            raise ProviderUnavailable(f"CUDA cannot run here: {problem.reason}", hint=problem.fix)
        self.provider, self.fallback_reason = Provider.CPU, problem.reason
        return _session(model, self._options, ["CPUExecutionProvider"], strict=False)

    def _open_cuda(self, model: bytes) -> Any:
        cuda = ("CUDAExecutionProvider", {"device_id": self._options.device_id, "use_tf32": 0})
        if self._options.allow_fallback:
            return _session(model, self._options, [cuda, "CPUExecutionProvider"], strict=False)
        try:
            return _session(model, self._options, [cuda], strict=True)
        except BundleInvalid as error:
            raise ProviderUnavailable(
                f"CUDA cannot run this model: {self._nodes_left_behind(model, cuda) or error}",
                hint="use --provider cpu, or --allow-fallback to let those nodes run on the CPU",
            ) from error

    def _nodes_left_behind(self, model: bytes, cuda: tuple[str, dict[str, int]]) -> str:
        """Name the nodes for which CUDA has no kernel, by opening the model once more with the CPU allowed."""
        session = _session(model, self._options, [cuda, "CPUExecutionProvider"], strict=False)
        left = [
            f"{node.name or '?'} ({node.op_type})"
            for graph in session.get_provider_graph_assignment_info()
            if graph.ep_name == "CPUExecutionProvider"
            for node in graph.get_nodes()
        ]
        more = f" and {len(left) - 4} more" if len(left) > 4 else ""
        return f"it has no kernel for {', '.join(left[:4])}{more}" if left else ""

    def _check_placement(self) -> None:
        """Believe what the session did, not what it was asked to do."""
        if self.placement.is_all_on(self.provider):
            return
        if not self._options.allow_fallback:
            raise ProviderUnavailable(
                f"asked for {self.provider}, but ONNX Runtime placed the nodes so: {self.placement.describe()}",
                hint="use --allow-fallback to accept that",
            )
        self.fallback_reason = f"only part of the model runs on {self.provider}: {self.placement.describe()}"
        if self.provider.value not in self.placement.nodes:
            self.provider = Provider.CPU


def cuda_problem(device_id: int = 0) -> libraries.Problem | None:
    """Return what keeps the CUDA provider from running here, or None. Loads the CUDA libraries to find out."""
    ort = _onnxruntime()
    compiled_in = "CUDAExecutionProvider" in ort.get_available_providers()
    if compiled_in:
        _preload()
    folder = Path(ort.__file__).parent / "capi"
    return libraries.cuda_problem(compiled_in=compiled_in, library_folder=folder, device_id=device_id)


def compiled_package() -> str:
    """Return the package whose files are really imported, such as `onnxruntime-gpu`."""
    ort = _onnxruntime()
    try:
        from onnxruntime.capi import build_and_package_info
    except ImportError:
        return "onnxruntime"
    return f"{build_and_package_info.package_name} {ort.__version__}"


def _onnxruntime() -> Any:
    try:
        return packages.needed(
            "onnxruntime", distribution="onnxruntime", purpose="running a model", extra="cpu` or `gpu"
        )
    except ImportError as error:  # a broken installation: its own message names the library
        raise PackageMissing(f"onnxruntime is installed but does not load: {error}", hint="install it again") from error


@cache
def _preload() -> None:
    """Load CUDA and cuDNN from the nvidia-* wheels; failures are printed there and found by `libraries` afterwards."""
    with contextlib.redirect_stdout(io.StringIO()):
        _onnxruntime().preload_dlls()


def _session(model: bytes, options: RunnerOptions, providers: list[Any], *, strict: bool) -> Any:
    ort = _onnxruntime()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = _QUIET
    settings.add_session_config_entry(_RECORD_PLACEMENT, "1")
    if strict:
        settings.add_session_config_entry(_CPU_FALLBACK, "1")
    try:
        with _quiet(ort):
            return ort.InferenceSession(model, settings, providers=providers)
    except _theirs() as error:
        raise BundleInvalid(f"ONNX Runtime does not accept the model: {_words(error)}") from error


@contextlib.contextmanager
def _quiet(ort: Any) -> Iterator[None]:
    """Hold back the default logger, which reports provider failures on stderr before they are raised."""
    ort.set_default_logger_severity(_QUIET)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)


@cache
def _theirs() -> tuple[type[Exception], ...]:
    """Return ONNX Runtime's exceptions, which share no base class."""
    state = _onnxruntime().capi.onnxruntime_pybind11_state
    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NotImplemented",
        "RuntimeException",
        "EPFail",
    )
    return tuple(getattr(state, name) for name in names)


def _words(error: Exception) -> str:
    """Return the part of an ONNX Runtime message that is not its own numbering."""
    return str(error).split(" : ", maxsplit=3)[-1].strip()


def _placement(session: Any) -> Placement:
    nodes: dict[str, int] = {}
    for graph in session.get_provider_graph_assignment_info():
        name = str(graph.ep_name).removesuffix("ExecutionProvider").lower()
        nodes[name] = nodes.get(name, 0) + len(graph.get_nodes())
    return Placement(nodes)


def check_pixels(pixels: np.ndarray[Any, Any], shape: tuple[int, ...]) -> Pixels:
    """Return `pixels` as a contiguous uint8 batch, or say what was expected.

    Raises:
        UsageError: Wrong dtype or shape.
    """
    batch = pixels[np.newaxis] if pixels.shape == shape else pixels
    if batch.dtype != np.uint8 or batch.shape[1:] != shape or batch.ndim != len(shape) + 1:
        raise UsageError(
            f"expected uint8 pixels of shape {shape} or (N, {', '.join(map(str, shape))}), "
            f"found {pixels.dtype} {pixels.shape}",
            hint="give raw 0..255 pixels; the graph normalises them itself",
        )
    return np.ascontiguousarray(batch)
