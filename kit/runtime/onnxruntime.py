"""ONNX Runtime behind the Runner protocol, strict about where it runs. The only room of kit/ that imports onnxruntime.

Asked for CUDA, ONNX Runtime gives a CPU session and a warning where CUDA cannot load. Here three locks forbid that: only
the wanted provider is listed, `session.disable_cpu_ep_fallback` refuses nodes it cannot run, and the placement of every
node is read back and checked. TF32, on by default in the CUDA provider, is switched off, so that CPU and GPU agree.
TensorRT is held to the same, with CUDA beside it for the nodes it does not know.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
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
_EXECUTION_PROVIDERS = {
    Provider.CPU: "CPUExecutionProvider",
    Provider.CUDA: "CUDAExecutionProvider",
    Provider.TENSORRT: "TensorrtExecutionProvider",
}
_NAMES = {Provider.CUDA: "CUDA", Provider.TENSORRT: "TensorRT"}
_HELPERS = {Provider.TENSORRT: (Provider.CUDA,)}
"""Providers that may run some of the nodes without its being a fallback; the placement says how many."""
_OPTIMIZATIONS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "off": "ORT_DISABLE_ALL",
}
_QUIET = 4  # fatal only: what matters is raised, with words of our own


class OnnxRuntimeRunner(ClosingRunner):
    """An ONNX model opened in ONNX Runtime.

    Args:
        model: The ONNX file's bytes; external data is not followed.
        options: Provider, threads, device.
        profile_into: Folder for the profiler's trace, which `end_profiling` returns; None: no profiler.

    Raises:
        PackageMissing: No ONNX Runtime is installed.
        ProviderUnavailable: The provider cannot run here, or not all of the model; the message says why.
        BundleInvalid: ONNX Runtime does not accept the model.
    """

    runtime = "onnxruntime"

    def __init__(self, model: bytes, options: RunnerOptions | None = None, *, profile_into: Path | None = None) -> None:
        self._options = options or RunnerOptions()
        self._profile_into = profile_into
        self.provider = self._options.provider
        self.fallback_reason = self.fallback_fix = ""
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
            raise kind(
                f"ONNX Runtime could not run {len(pixels):,} samples on {self.provider}: {_words(error)}",
                hint="see whether it runs a few: kit verify; if it does, use a smaller batch",
            ) from error
        return logits

    def end_profiling(self) -> bytes:
        """Stop the profiler and return its trace, in Chrome's format."""
        return Path(self._session.end_profiling()).read_bytes()

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _open(self, model: bytes) -> Any:
        if self.provider is Provider.CPU:
            return _session(
                model, self._options, ["CPUExecutionProvider"], strict=False, profile_into=self._profile_into
            )
        problem = gpu_problem(self.provider, self._options.device_id)
        if problem is None:
            return self._open_gpu(model)
        if not self._options.allow_fallback:
            raise ProviderUnavailable(f"{_NAMES[self.provider]} cannot run here: {problem.reason}", hint=problem.fix)
        self.provider, self.fallback_reason, self.fallback_fix = Provider.CPU, problem.reason, problem.fix
        return _session(model, self._options, ["CPUExecutionProvider"], strict=False, profile_into=self._profile_into)

    def _open_gpu(self, model: bytes) -> Any:
        gpu = _gpu_providers(self._options)
        if self._options.allow_fallback:
            return _session(
                model, self._options, [*gpu, "CPUExecutionProvider"], strict=False, profile_into=self._profile_into
            )
        try:
            return _session(model, self._options, gpu, strict=True, profile_into=self._profile_into)
        except BundleInvalid as error:
            raise ProviderUnavailable(
                f"{_NAMES[self.provider]} cannot run this model: {self._nodes_left_behind(model, gpu) or error}",
                hint="use --provider cpu, or --allow-fallback to let those nodes run on the CPU",
            ) from error

    def _nodes_left_behind(self, model: bytes, gpu: list[Any]) -> str:
        """Name the nodes for which the GPU has no kernel, by opening the model once more with the CPU allowed."""
        session = _session(model, self._options, [*gpu, "CPUExecutionProvider"], strict=False)
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
        if self.placement.is_all_on(self.provider, *_HELPERS.get(self.provider, ())):
            return
        if not self._options.allow_fallback:
            raise ProviderUnavailable(
                f"asked for {self.provider}, but ONNX Runtime placed the nodes so: {self.placement.describe()}",
                hint="use --allow-fallback to accept that",
            )
        self.fallback_reason = f"only part of the model runs on {self.provider}: {self.placement.describe()}"
        if self.provider.value not in self.placement.nodes:
            self.provider = Provider.CPU


def gpu_problem(provider: Provider, device_id: int = 0) -> libraries.Problem | None:
    """Return what keeps CUDA or TensorRT from running here, or None. Loads their libraries to find out."""
    ort = _onnxruntime()
    compiled_in = _EXECUTION_PROVIDERS[provider] in ort.get_available_providers()
    if compiled_in:
        _preload()
    if compiled_in and provider is Provider.TENSORRT:
        _preload_tensorrt()
    problem = libraries.tensorrt_problem if provider is Provider.TENSORRT else libraries.cuda_problem
    folder = Path(ort.__file__).parent / "capi"
    return problem(compiled_in=compiled_in, library_folder=folder, device_id=device_id)


def _gpu_providers(options: RunnerOptions) -> list[Any]:
    """Return the wanted provider and its helper, each with its settings."""
    cuda = ("CUDAExecutionProvider", {"device_id": options.device_id, "use_tf32": 0})
    if options.provider is Provider.CUDA:
        return [cuda]
    return [("TensorrtExecutionProvider", {"device_id": options.device_id}), cuda]


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


@cache
def _preload_tensorrt() -> None:
    """Load the libraries of the tensorrt-* wheels, where they are installed; what fails is found by `libraries`."""
    found = importlib.util.find_spec("tensorrt_libs")
    for folder in (found.submodule_search_locations or ()) if found else ():
        for library in sorted(Path(folder).glob("libnv*.so*")):
            with contextlib.suppress(OSError):
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


@dataclass(frozen=True)
class ProfiledNode:
    """One node of the final graph, after the providers fused it; `mean_us` of one call."""

    name: str
    operator: str
    provider: str
    mean_us: float


@dataclass(frozen=True)
class Profiled:
    """What ONNX Runtime's profiler saw.

    Attributes:
        nodes: The longest first.
        run_us: Mean of a whole call, without Python.
        kernels: Final nodes by provider.
        placement: Nodes by provider before fusion.
        provider: Where it truly ran.
        trace: In Chrome's trace format, which Perfetto opens.
        fallback_reason: Why it did not run where it was asked to; empty when it did.
        fallback_fix: What to do about that.
    """

    nodes: tuple[ProfiledNode, ...]
    run_us: float
    kernels: Placement
    placement: Placement
    provider: Provider
    trace: bytes
    fallback_reason: str = ""
    fallback_fix: str = ""


def profile(model: bytes, options: RunnerOptions, pixels: Pixels, *, calls: int, warmup: int = 20) -> Profiled:
    """Run a model under the profiler; `warmup` calls are in the trace but not in the means.

    Raises:
        ProviderUnavailable: The provider cannot run here.
        BundleInvalid: ONNX Runtime does not accept the model.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        OnnxRuntimeRunner(model, options, profile_into=Path(folder)) as runner,
    ):
        for _ in range(warmup + calls):
            runner.run(pixels)
        trace = runner.end_profiling()
        events = json.loads(trace)
        nodes: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                provider = event["args"]["provider"].removesuffix("ExecutionProvider").lower()
                name = event["name"].removesuffix("_kernel_time")
                nodes[name, event["args"]["op_name"], provider].append(float(event["dur"]))
        runs = [float(event["dur"]) for event in events if event["name"] == "model_run"]
        kernels: dict[str, int] = defaultdict(int)
        for _, _, provider in nodes:
            kernels[provider] += 1
        seen = [ProfiledNode(*key, mean_us=_mean(durations[warmup:])) for key, durations in nodes.items()]
        return Profiled(
            nodes=tuple(sorted(seen, key=lambda node: -node.mean_us)),
            run_us=_mean(runs[warmup:]),
            kernels=Placement(dict(kernels)),
            placement=runner.placement,
            provider=runner.provider,
            trace=trace,
            fallback_reason=runner.fallback_reason,
            fallback_fix=runner.fallback_fix,
        )


def _mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def _session(
    model: bytes, options: RunnerOptions, providers: list[Any], *, strict: bool, profile_into: Path | None = None
) -> Any:
    ort = _onnxruntime()
    settings = ort.SessionOptions()
    if profile_into is not None:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(profile_into / "trace")
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = _QUIET
    settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _OPTIMIZATIONS[options.optimization])
    settings.enable_cpu_mem_arena = options.arena
    if not options.spinning:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not options.prepacking:
        settings.add_session_config_entry("session.disable_prepacking", "1")
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
