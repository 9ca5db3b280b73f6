"""ONNX Runtime behind the Runner protocol, strict about where it runs. The only room of kit/ that imports onnxruntime.

Asked for CUDA, ONNX Runtime gives a CPU session and a warning where CUDA cannot load. Here three locks forbid that: only
the wanted provider is listed, `session.disable_cpu_ep_fallback` refuses nodes it cannot run, and the placement of every
node is read back and checked. TF32, on by default in the CUDA provider, is switched off, so that CPU and GPU agree.
TensorRT is held to the same, with CUDA beside it for the nodes it does not know; but it uses TF32, and ONNX Runtime has no
option to forbid it.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import importlib.util
import io
import itertools
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kit.bundle import graph_file
from kit.choices import Provider
from kit.errors import BundleInvalid, KitError, PackageMissing, ProviderUnavailable, Unavailable, UsageError
from kit.runtime import io_binding, libraries, ort_errors, signatures
from kit.runtime.base import (
    BaseRunner,
    Binding,
    OneToOne,
    Placement,
    RecentBindings,
    RunnerOptions,
    Shapes,
    copied,
    refuse_varying,
)
from kit.samples import seeded
from kit.system import packages
from kit.tensors import Signature, Sizes, Tensors

ARENA_ABOVE_BYTES = 4 * 2**20
"""Weights of a model whose freed memory is kept: EfficientNet-Lite0 in fp32 then took 47 and not 73 ms for 8 pictures."""

_CPU_FALLBACK = "session.disable_cpu_ep_fallback"
_RECORD_PLACEMENT = "session.record_ep_graph_assignment_info"
_EXACT_INT8 = "session.x64quantprecision"
"""Makes int8 weights unsigned, whatever the CPU: on one with VNNI a network of convolutions took 2.3 times as long."""

PRODUCTS = Path(__file__).parent / "products.onnx"
"""One MatMulInteger, `y = x @ w` of uint8 [1, 64] and 64 rows of 127: with x of 255, what is added in 16 bits saturates."""

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
_BIND_UP_TO_BYTES = 64 * 2**10  # copying more takes longer than binding saves
_MOST_BINDINGS = 32
_QUIET = 4  # fatal only: what matters is raised, with words of our own


class OnnxRuntimeRunner(BaseRunner):
    """An ONNX model opened in ONNX Runtime.

    Args:
        model: The ONNX file's bytes; or its path, if weights lie in files beside it: these are mapped and not copied.
        options: Provider, threads, device.
        signature: Checked against the graph now and the outputs of the first call; None: as the graph has it.
        profile_into: Folder for the profiler's trace, which `end_profiling` returns; None: no profiler.
        binds: Keep small inputs and outputs bound from call to call; without, each call is a plain `session.run`.
        may_saturate: Whether products of int8 weights may be added in 16 bits, as x86 CPUs without VNNI do. Weights of
            8 bits saturate there, unless ONNX Runtime is told to make them unsigned.

    Raises:
        PackageMissing: No ONNX Runtime is installed.
        ProviderUnavailable: The provider cannot run here, or not all of the model; the message says why.
        BundleInvalid: ONNX Runtime does not accept the model, or the model is not what the signature says.
        MemoryShort: There is too little memory for it.
    """

    def __init__(
        self,
        model: bytes | Path,
        options: RunnerOptions | None = None,
        *,
        signature: Signature | None = None,
        profile_into: Path | None = None,
        binds: bool = True,
        may_saturate: bool = False,
    ) -> None:
        self._may_saturate = may_saturate
        self._options = options or RunnerOptions()
        self._profile_into = profile_into
        self.runtime = "onnxruntime" if binds else "onnxruntime-plain"
        self.provider = self._options.provider
        self.fallback_reason = self.fallback_fix = ""
        graph_file.refuse_unsound(model)
        self._session: Any = self._open(model)
        try:
            self.placement = _placement(self._session)
            self._check_placement()
            if signature is not None:
                signatures.check_session(self._session, signature)
            self.signature = signature or signatures.of_session(self._session)
        except Exception as error:  # the session's words are the file's: they may be no text
            raise ort_errors.of_opening(error) from error
        self._is_checked = signature is None
        self._names = [spec.name for spec in self.signature.inputs]
        self._outputs = [spec.name for spec in self.signature.outputs]
        self._input, self._output = self._names[0], self._outputs[0]
        self._binds = binds and not self._is_mixed and not any(spec.varies for spec in self.signature.outputs)
        self._bindings = RecentBindings(_MOST_BINDINGS)
        self._last: OneToOne | None = None  # the binding that ran last, of a model with one input and one output
        self._graphs = itertools.count()
        self._seen: list[tuple[tuple[int, ...], np.dtype[Any]]] = []  # of the inputs that ran last, without a binding

    def run(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Compute all outputs, by name, for inputs that fit the signature; the arrays are the caller's to keep.

        Small inputs are copied into buffers that stay bound, which is faster than a plain call; large ones are read in
        place. Raises what `Runner.run` does, and MemoryShort if there is too little memory for these inputs.
        """
        last = self._last
        if last is not None and len(tensors) == 1:  # a call may take 11 us: no loop, no other look-up
            array = tensors.get(self._input)
            if array is not None and array.shape == last.shape and array.dtype is last.dtype:
                try:
                    return {self._output: last.run_fitting(array).copy()}
                except KitError:
                    return self._unbound(tensors)
        return self._run_bound(tensors) if self._binds or not self._is_checked else self._run_checked(tensors)

    def bind(self, sizes: Sizes) -> Binding:
        """Return buffers for inputs of these sizes, on the device where the model runs; an axis left out has its usual size."""
        if self._session is None:
            raise UsageError("this runner was closed")
        refuse_varying(self.signature)
        if self._is_mixed:
            return super().bind(sizes)
        known = self.signature.usual_sizes(**sizes)
        inputs = self.signature.zeros(known)
        try:
            outputs = self._run_plainly(inputs)
        except BundleInvalid:  # a rate of 0, for instance: what the model accepts is only known by trying
            inputs = dict(seeded(self.signature, sizes=known).inputs)
            outputs = self._run_plainly(inputs)
        self._check(outputs, known)
        return self._bound(inputs, outputs)

    def share(self) -> Self:
        """Return a runner on the same session, with buffers of its own: sessions may run in several threads at once."""
        if self._session is None:
            raise UsageError("this runner was closed")
        if self._options.cuda_graph:
            raise Unavailable("a session that replays CUDA graphs is for one thread", hint="open the model once more")
        other = copy.copy(self)
        other._bindings, other._last = RecentBindings(_MOST_BINDINGS), None  # noqa: SLF001 - one of this class
        return other

    def _run_bound(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        try:
            arrays = [tensors[name] for name in self._names]
            shapes = tuple([array.shape for array in arrays])
        except (KeyError, AttributeError):
            self.signature.check(tensors)
            raise
        bound = self._bindings.get(shapes) if len(tensors) == len(arrays) else None
        if bound is None:
            return self._run_first(tensors, shapes)
        if isinstance(bound, OneToOne):
            self._last = bound
        try:
            return copied(bound.run(*arrays), self._outputs)
        except KitError:
            return self._unbound(tensors)

    def _run_checked(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Run what is not bound; inputs of the shapes and dtypes of the call before are known to fit."""
        try:
            seen = [(tensors[name].shape, tensors[name].dtype) for name in self._names]
        except (KeyError, AttributeError):
            self.signature.check(tensors)
            raise
        if seen != self._seen or len(tensors) != len(seen):
            self.signature.check(tensors)
            self._seen = seen
        return self._run_plainly(tensors)

    def _run_first(self, tensors: Tensors, shapes: Shapes) -> dict[str, NDArray[Any]]:
        if self._session is None:
            raise UsageError("this runner was closed")
        sizes = self.signature.check(tensors)
        outputs = self._run_plainly(tensors)
        self._check(outputs, sizes)
        graphs = self._options.cuda_graph  # each size is recorded, and a recorded one is never forgotten
        has_room = not graphs or len(self._bindings) < _MOST_BINDINGS
        if self._binds and has_room and (graphs or (_is_small(tensors) and _is_small(outputs))):
            with contextlib.suppress(Unavailable):  # no room for buffers: the answer is there all the same
                inputs = {name: np.array(tensors[name], order="C") for name in self._names}
                made = {name: array.copy() for name, array in outputs.items()}
                bound = self._bindings.keep(shapes, self._bound(inputs, made))
                self._last = bound if isinstance(bound, OneToOne) else None
        return outputs

    def _check(self, outputs: Tensors, sizes: Sizes) -> None:
        if not self._is_checked:
            signatures.check_outputs(outputs, self.signature, sizes)
            self._is_checked = True

    def _unbound(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        """Run plainly what failed bound: if that works, an output's size depends on the values, and nothing is bound again."""
        self.signature.check(tensors)
        outputs = self._run_plainly(tensors)
        self._binds, self._last = False, None
        self._bindings.clear()
        return outputs

    def _bound(self, inputs: Tensors, outputs: Tensors) -> Binding:
        ort = _onnxruntime()
        translate = partial(self._failure, rows=self.signature.rows(inputs))
        with io_binding.translating(translate):  # memory of the device may have run out, for instance
            if self.provider is Provider.CPU:
                return io_binding.bind_host(self._session, ort, inputs, outputs, translate)
            return io_binding.bind_device(
                self._session,
                ort,
                inputs,
                outputs,
                translate,
                device=("cuda", self._options.device_id),
                graph_id=next(self._graphs) if self._options.cuda_graph else None,
            )

    @property
    def _is_mixed(self) -> bool:
        """Whether nodes run in several places: an input is copied to its own once, when it is bound, and never again."""
        return bool(self.fallback_reason) and set(self.placement.nodes) != {Provider.CPU.value}

    def _run_plainly(self, tensors: Tensors) -> dict[str, NDArray[Any]]:
        how = io_binding.without_graph(_onnxruntime()) if self._options.cuda_graph else None
        try:
            found = self._session.run(self._outputs, tensors if type(tensors) is dict else dict(tensors), how)
        except Exception as error:
            if self._session is None:
                raise UsageError("this runner was closed") from error
            self.signature.check(tensors)
            raise self._failure(error, rows=self.signature.rows(tensors)) from error
        return dict(zip(self._outputs, found, strict=True))

    def _failure(self, error: Exception, *, rows: int) -> KitError:
        return ort_errors.of_running(error, provider=self.provider, rows=rows)

    def end_profiling(self) -> bytes:
        """Stop the profiler and return its trace, in Chrome's format."""
        return Path(self._session.end_profiling()).read_bytes()

    def close(self) -> None:
        """Free the session, as soon as no binding and no runner that shares it is left."""
        self._session = self._last = None
        self._bindings.clear()

    def _open(self, model: bytes | Path) -> Any:
        if self.provider is Provider.CPU:
            return self._open_on(model, ["CPUExecutionProvider"])
        problem = gpu_problem(self.provider, self._options.device_id)
        if problem is None:
            return self._open_gpu(model)
        if not self._options.allow_fallback:
            raise ProviderUnavailable(f"{_NAMES[self.provider]} cannot run here: {problem.reason}", hint=problem.fix)
        self.provider, self.fallback_reason, self.fallback_fix = Provider.CPU, problem.reason, problem.fix
        return self._open_on(model, ["CPUExecutionProvider"])

    def _open_on(self, model: bytes | Path, providers: list[Any], *, strict: bool = False) -> Any:
        return _session(
            model,
            self._options,
            providers,
            strict=strict,
            profile_into=self._profile_into,
            may_saturate=self._may_saturate,
        )

    def _open_gpu(self, model: bytes | Path) -> Any:
        gpu = _gpu_providers(self._options)
        if self._options.allow_fallback:
            return self._open_on(model, [*gpu, "CPUExecutionProvider"])
        try:
            return self._open_on(model, gpu, strict=True)
        except BundleInvalid as error:
            raise ProviderUnavailable(
                f"{_NAMES[self.provider]} cannot run this model: {self._nodes_left_behind(model, gpu) or error}",
                hint="use --provider cpu, or --allow-fallback to let those nodes run on the CPU",
            ) from error

    def _nodes_left_behind(self, model: bytes | Path, gpu: list[Any]) -> str:
        for _, settings in gpu:
            settings.pop("enable_cuda_graph", None)  # with it, a session that needs the CPU does not open at all
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
    settings: dict[str, Any] = {"device_id": options.device_id, "use_tf32": int(options.tf32)}
    if options.cuda_graph:
        settings["enable_cuda_graph"] = 1
    if options.gpu_memory_limit_bytes is not None:
        settings["gpu_mem_limit"] = options.gpu_memory_limit_bytes
    cuda = ("CUDAExecutionProvider", settings)
    if options.provider is Provider.CUDA:
        return [cuda]
    return [("TensorrtExecutionProvider", {"device_id": options.device_id}), cuda]


@cache
def saturates() -> bool:
    """Whether ONNX Runtime adds products of uint8 and int8 in 16 bits on this CPU, by letting it do so: on x86 without VNNI."""
    ort = _onnxruntime()
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    session = ort.InferenceSession(PRODUCTS.read_bytes(), settings, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.full((1, 64), 255, np.uint8)})
    return bool((found != 64 * 255 * 127).any())


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


def _session(
    model: bytes | Path,
    options: RunnerOptions,
    providers: list[Any],
    *,
    strict: bool,
    profile_into: Path | None = None,
    may_saturate: bool = False,
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
    settings.enable_cpu_mem_arena = _keeps_memory(model) if options.arena is None else options.arena
    if not options.spinning:
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not options.prepacking:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    if not may_saturate and saturates():
        settings.add_session_config_entry(_EXACT_INT8, "1")
    settings.add_session_config_entry(_RECORD_PLACEMENT, "1")
    if strict:
        settings.add_session_config_entry(_CPU_FALLBACK, "1")
    try:
        with _quiet(ort):
            return ort.InferenceSession(model, settings, providers=providers)
    except Exception as error:  # they share no base class
        raise ort_errors.of_opening(error) from error


def _keeps_memory(model: bytes | Path) -> bool:
    if isinstance(model, bytes):
        return len(model) > ARENA_ABOVE_BYTES
    return sum(path.stat().st_size for path in (model, *graph_file.weights_beside(model))) > ARENA_ABOVE_BYTES


@contextlib.contextmanager
def _quiet(ort: Any) -> Iterator[None]:
    """Hold back the default logger, which reports provider failures on stderr before they are raised."""
    ort.set_default_logger_severity(_QUIET)
    try:
        yield
    finally:
        ort.set_default_logger_severity(2)


def _placement(session: Any) -> Placement:
    nodes: dict[str, int] = {}
    for graph in session.get_provider_graph_assignment_info():
        name = str(graph.ep_name).removesuffix("ExecutionProvider").lower()
        nodes[name] = nodes.get(name, 0) + len(graph.get_nodes())
    return Placement(nodes)


def _is_small(tensors: Tensors) -> bool:
    return sum(array.nbytes for array in tensors.values()) <= _BIND_UP_TO_BYTES and all(
        array.size for array in tensors.values()
    )
