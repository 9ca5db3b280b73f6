"""The runtimes there are: built in, or added by other packages through the entry point group `kit.runtimes`.

A plug is a function `open(bundle, variant, options) -> Runner`, and optionally an attribute `formats` on it, the
variant formats it can run (all without it). A runtime that is missing or cannot run raises kit.errors.Unavailable.

```toml
[project.entry-points."kit.runtimes"]
mine = "my_package:open_mine"
```
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from kit.bundle import Bundle, graph_file
from kit.bundle.manifest import Variant
from kit.choices import Precision, Provider, VariantFormat
from kit.errors import PackageMissing, Unavailable, UsageError
from kit.runtime import trial
from kit.runtime.base import Runner, RunnerOptions
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.system import packages
from kit.system.packages import entry_points, explain, load_plug, plugged

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "kit.runtimes"
ARCHITECTURES = "kit.architectures"
"""Entry points `rebuild(bundle) -> torch.nn.Module | None`: None of a bundle that they do not know."""

ALL = "all"
DEFAULT = "onnxruntime"

Open = Callable[[Bundle, Variant, RunnerOptions], Runner]


def _onnxruntime(bundle: Bundle, variant: Variant, options: RunnerOptions) -> Runner:
    return _opened(bundle, variant, options, binds=True)


def _opened(bundle: Bundle, variant: Variant, options: RunnerOptions, *, binds: bool) -> Runner:
    """Open a variant in ONNX Runtime; its products must not saturate if its weights are integers of 8 bits."""
    few_bits = variant.quantization is not None and variant.quantization.weight_bits < 8
    return OnnxRuntimeRunner(
        bundle.model(variant),
        options,
        signature=bundle.signature,
        binds=binds,
        may_saturate=few_bits or variant.precision is not Precision.INT8,
    )


def _plain(bundle: Bundle, variant: Variant, options: RunnerOptions) -> Runner:
    if options.cuda_graph:
        raise Unavailable(
            "session.run replays no CUDA graph", hint="use the runtime onnxruntime, or leave the graph out"
        )
    return _opened(bundle, variant, options, binds=False)


def _pytorch(bundle: Bundle, variant: Variant, options: RunnerOptions) -> Runner:
    return _torch(bundle, variant, options, compiled=False)


def _pytorch_compile(bundle: Bundle, variant: Variant, options: RunnerOptions) -> Runner:
    return _torch(bundle, variant, options, compiled=True)


def _torch(bundle: Bundle, variant: Variant, options: RunnerOptions, *, compiled: bool) -> Runner:
    if options.provider is Provider.TENSORRT:
        raise Unavailable("kit runs PyTorch on the CPU and on CUDA", hint="use --provider cuda for it")
    from kit.runtime.pytorch import PyTorchRunner

    half = variant.precision is Precision.FP16
    return PyTorchRunner(rebuilt(bundle), bundle.signature, options=options, compiled=compiled, half=half)


def rebuilt(bundle: Bundle) -> Any:
    """Return the module that a bundle was made of; its forward takes the inputs of the signature in order.

    Raises:
        Unavailable: No installed package knows its architecture, or fails at it, or the bundle has no weights.
        BundleInvalid: The weights were altered.
    """
    original, problems = bundle.manifest.original, []
    if original is not None and original.weights is not None:
        for entry in entry_points(ARCHITECTURES):
            try:
                rebuild = load_plug(entry)
                with plugged(entry):
                    module = rebuild(bundle)
            except Unavailable as error:  # another package may know it
                problems.append(error)
                continue
            if module is not None:
                return module
    name = f"{original.kind} {original.name!r}" if original else "the original"
    told = "".join(f"; {problem}" for problem in problems)
    raise Unavailable(
        f"kit cannot rebuild {name} for PyTorch{told}",
        hint=next((one.hint for one in problems if one.hint), "use the runtime onnxruntime"),
    )


def _openvino(bundle: Bundle, variant: Variant, options: RunnerOptions) -> Runner:
    _cpu_only("openvino", options)
    from kit.runtime.openvino import OpenVinoRunner

    return OpenVinoRunner(bundle.model(variant), options, signature=bundle.signature)


def _mnn(bundle: Bundle, variant: Variant, options: RunnerOptions) -> Runner:
    _cpu_only("mnn", options)
    from kit.runtime import converted, mnn

    mnn.needed()
    graph_file.refuse_unsound(bundle.model(variant))
    refs = (variant.graph, *variant.data)
    made = converted.converted(mnn.CONVERTER, bundle.check(variant.graph), refs)
    trial.try_file(made, refs, "mnn", signature=bundle.signature)
    return mnn.MnnRunner(made, options, signature=bundle.signature)


def _reference(bundle: Bundle, variant: Variant, options: RunnerOptions) -> Runner:
    _cpu_only("onnx-reference", options)
    from kit.runtime.reference import ReferenceRunner

    return ReferenceRunner(bundle.model(variant), options, signature=bundle.signature)


def _litert(bundle: Bundle, variant: Variant, options: RunnerOptions) -> Runner:
    _cpu_only(LITERT, options)
    packages.needed("ai_edge_litert", distribution="ai-edge-litert", purpose="the runtime litert", extra="litert")
    from kit.runtime.litert import LiteRtRunner

    return LiteRtRunner(bundle.model(variant), options, signature=bundle.signature)


def _browser(bundle: Bundle, variant: Variant, options: RunnerOptions) -> Runner:
    _cpu_only(BROWSER, options)
    from kit.runtime.browser import BrowserRunner

    return BrowserRunner(bundle, variant, options)


def _cpu_only(name: str, options: RunnerOptions) -> None:
    if options.provider is not Provider.CPU:
        raise Unavailable(f"{name} runs on the CPU only here", hint="use --provider cpu for it")


BROWSER = "browser"
"""onnxruntime-web in headless Chromium: not one of ALL, for it is another machine's kind of runtime."""

LITERT = "litert"
"""LiteRT: networks of dense layers."""

BF16_RUNTIME = "openvino"
"""Computes float32 in bfloat16 if it is allowed to."""

ONNXRUNTIME_ONLY = frozenset({VariantFormat.QOPERATOR, VariantFormat.PIXEL})
"""Formats made of operators of com.microsoft that no other runtime has."""

_PORTABLE = frozenset(VariantFormat) - ONNXRUNTIME_ONLY
"""OpenVINO also reads MatMulNBits and DynamicQuantizeLSTM; what has operators of com.microsoft is not for the reference."""
_BUILT_IN: dict[str, tuple[Open, frozenset[VariantFormat] | None]] = {
    DEFAULT: (_onnxruntime, None),
    "onnxruntime-plain": (_plain, None),
    "openvino": (_openvino, _PORTABLE),
    "mnn": (_mnn, frozenset({VariantFormat.FLOAT})),
    "pytorch": (_pytorch, frozenset({VariantFormat.FLOAT})),
    "pytorch-compile": (_pytorch_compile, frozenset({VariantFormat.FLOAT})),
    "onnx-reference": (_reference, _PORTABLE),
    LITERT: (_litert, frozenset({VariantFormat.FLOAT, VariantFormat.QDQ, VariantFormat.PIXEL})),
    BROWSER: (_browser, None),
}

_MODULES = {
    "onnxruntime-plain": DEFAULT,
    "mnn": "MNN",
    "pytorch": "torch",
    "pytorch-compile": "torch",
    "onnx-reference": "onnx",
    LITERT: "ai_edge_litert",
    BROWSER: "playwright",
}
_PYTORCH = frozenset({"pytorch", "pytorch-compile"})

GUESTS = frozenset({LITERT, "mnn"})
"""Runtimes that few people install: `all` leaves out those that are not here."""

_ONNX_ALONE = frozenset({"mnn", "onnx-reference"})
"""Runtimes that know none of the operators of com.microsoft."""


def names() -> tuple[str, ...]:
    """Return the runtimes by name, the default first, added ones last."""
    added = (entry.name for entry in entry_points(GROUP))
    return (*_BUILT_IN, *(name for name in added if name not in _BUILT_IN))


def chosen(wanted: tuple[str, ...], bundle: Bundle | None = None) -> tuple[str, ...]:
    """Return the runtimes that were asked for, by name.

    `all` leaves out the browser, those of GUESTS that are not installed, and PyTorch if a given `bundle` holds nothing
    that could be rebuilt for it.

    Raises:
        UsageError: One of them does not exist.
    """
    if ALL in wanted:
        original = None if bundle is None else bundle.manifest.original
        has_module = bundle is None or (original is not None and original.weights is not None)
        left_out = {BROWSER, *(name for name in GUESTS if not is_here(name)), *(() if has_module else _PYTORCH)}
        return tuple(name for name in names() if name not in left_out)
    for name in wanted:
        if name not in _BUILT_IN and not is_address(name) and name not in names():
            raise UsageError(f"unknown runtime {name!r}", hint="choose one of: " + ", ".join((ALL, *names())))
    return tuple(dict.fromkeys(wanted))


def is_address(name: str) -> bool:
    """Whether a runtime's name is the address of a server that holds the model: see kit.runtime.remote."""
    return name.startswith(("http://", "https://"))


def is_here(name: str) -> bool:
    """Whether the package of a built-in runtime is installed; it may still not load."""
    return find_spec(_MODULES.get(name, name)) is not None


def can_run(name: str, variant: Variant, provider: Provider = Provider.CPU) -> bool:
    """Whether a runtime takes variants of this format and precision, and knows their operators.

    True of a server's address, and of another package's runtime that does not load: `open_runner` says what is wrong.
    """
    if is_address(name):
        return True
    try:
        formats = _BUILT_IN[name][1] if name in _BUILT_IN else getattr(load_plug(_entry(name)), "formats", None)
    except Unavailable:
        return True
    if name in _PYTORCH and variant.precision is not Precision.FP32 and provider is Provider.CPU:
        return False
    if name == LITERT and variant.precision is Precision.FP16:
        return False
    if name in _ONNX_ALONE and "com.microsoft" in variant.needs.domains:
        return False
    return formats is None or variant.format in formats


def open_runner(name: str, bundle: Bundle, variant: Variant, options: RunnerOptions) -> Runner:
    """Open a variant in a runtime.

    Raises:
        UsageError: It does not know an option.
        Unavailable: The runtime or its provider cannot run here.
        BundleInvalid: It does not accept the model, crashes on it, or a file was altered.
    """
    if is_address(name):
        from kit.runtime.remote import RemoteRunner

        return RemoteRunner(name, bundle, variant, options)
    if name not in _BUILT_IN:
        entry = _entry(name)
        opened: Open = load_plug(entry)
        with plugged(entry):
            return opened(bundle, variant, options)
    if options.bf16 and name != BF16_RUNTIME:
        raise UsageError(f"bf16 changes nothing in {name}", hint=f"use --runtime {BF16_RUNTIME}")
    if name in trial.TRIED:
        trial.try_variant(bundle, variant, name)
    try:
        return _BUILT_IN[name][0](bundle, variant, options)
    except ModuleNotFoundError as error:
        missing = explain(error) or PackageMissing(f"the runtime {name!r} needs {error.name}, which is not installed")
        raise missing from error
    except ImportError as error:  # a broken installation: its own message names the library
        raise Unavailable(f"the runtime {name!r} does not load: {error}", hint="install its package again") from error


def _entry(name: str) -> EntryPoint:
    """Return the entry point of a runtime; the first by its value, if several packages register the name."""
    return entry_points(GROUP, name)[0]
