"""The tools that scripts/int8_networks.py compares kit with: how each makes its model, and how a person would then call it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import int8_inputs
import numpy as np
import onnxruntime
import openvino
import torch
import zoo
from numpy.typing import NDArray
from torch import nn

from kit.runtime.onnxruntime import saturates
from kit.tensors import Signature

MAKERS = Path(__file__).with_name("int8_makers.py")
Tensors = Mapping[str, NDArray[Any]]
Call = Callable[[Tensors], dict[str, NDArray[Any]]]

FLOAT = ("ONNX Runtime fp32", "OpenVINO fp32", "torch.compile fp32")
BASELINE = FLOAT[0]
STATIC, DYNAMIC = "ONNX Runtime quantize_static", "ONNX Runtime quantize_dynamic"
NNCF, OPTIMUM, TORCHAO = "NNCF in OpenVINO", "Optimum, dynamic", "torchao int8, torch.compile"
OLIVE_STATIC, OLIVE_DYNAMIC = "Olive, static", "Olive, dynamic"
INT8 = (STATIC, DYNAMIC, NNCF, OLIVE_STATIC, OLIVE_DYNAMIC, OPTIMUM, TORCHAO)
ENVIRONMENTS = {
    "nncf": ("nncf", "openvino", "onnx"),
    "olive": ("olive-ai", "onnxruntime", "requests", "datasets", "torch"),
    "optimum": ("optimum-onnx", "onnxruntime"),
}
"""What is installed beside each other, by environment; Olive does not name all that its command imports."""

_STATIC_ROWS = 4


@dataclass(frozen=True, kw_only=True)
class Made:
    """A model of a tool; `file` is None for a module of torch, and if it failed; `problem` then says why."""

    tool: str
    file: Path | None = None
    step: zoo.Step | None = None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What all tools start from: the bundle's float ONNX file, and training inputs in groups of one size."""

    cache: Path
    folder: Path
    graph: Path
    signature: Signature
    train: Sequence[Tensors]
    train_path: Path
    is_transformer: bool = False
    module: Callable[[], Any] | None = None
    _known: dict[str, Any] = field(default_factory=dict)


def made(work: Work) -> list[Made]:
    """Let each tool make its model; what fails says so."""
    few, one = _samples(work, _STATIC_ROWS), _samples(work, 1)
    own = sys.executable
    found = [
        Made(tool=BASELINE, file=work.graph),
        Made(tool=FLOAT[1], file=work.graph),
        _by_maker(work, STATIC, own, "static", few, "static.onnx"),
        _by_maker(work, DYNAMIC, own, "dynamic", few, "dynamic.onnx"),
        _elsewhere(work, NNCF, "nncf", lambda python: _by_maker(work, NNCF, python, "nncf", one, "nncf.xml")),
        _elsewhere(work, OLIVE_DYNAMIC, "olive", lambda python: _by_olive(work, OLIVE_DYNAMIC, python)),
        _elsewhere(
            work,
            OLIVE_STATIC,
            "olive",
            lambda python: _by_olive(
                work, OLIVE_STATIC, python, "-d", str(work.train_path), "--act_precision", "uint8"
            ),
        ),
    ]
    if work.is_transformer:
        make = lambda python: _by_maker(work, OPTIMUM, python, "optimum", one, "optimum.onnx")  # noqa: E731
        found.append(_elsewhere(work, OPTIMUM, "optimum", make))
    absent = "" if work.module else "there is no module of torch: it came as a ready .onnx"
    return [*found, Made(tool=FLOAT[2], problem=absent), Made(tool=TORCHAO, problem=absent)]


def _samples(work: Work, rows: int) -> Path:
    path = work.folder / f"train-{rows}.npz"
    batches = [piece for group in work.train for piece in work.signature.split(group, rows)]
    arrays: dict[str, Any] = {
        f"{number:05d}|{name}": array for number, one in enumerate(batches) for name, array in one.items()
    }
    np.savez(path, **arrays)
    return path


def _by_maker(work: Work, tool: str, python: str, maker: str, samples: Path, out: str) -> Made:
    file = work.folder / out
    line = [python, str(MAKERS), maker, str(work.graph), str(samples), str(file)]
    return _ran(work, tool, [*line, *(["--transformer"] if work.is_transformer else [])], file)


def _by_olive(work: Work, tool: str, python: str, *more: str) -> Made:
    """Run `olive quantize` with ONNX Runtime as its implementation: its own takes 8 bits in no ONNX file."""
    out = work.folder / tool.replace(", ", "-").lower()
    line = [str(Path(python).with_name("olive")), "quantize", "-m", str(work.graph), "-o", str(out)]
    done = _ran(work, tool, [*line, "--implementation", "ort", "--precision", "int8", *more], out / "model.onnx")
    if done.problem and more:
        why = f"its command takes calibration samples from data sets of Hugging Face alone ({done.problem})"
        return dataclasses.replace(done, problem=why)
    return done


def _ran(work: Work, tool: str, line: list[str], file: Path) -> Made:
    empty = work.folder / "empty"
    empty.mkdir(exist_ok=True)
    step = zoo.run(line, zoo.Place(packages=empty, files=work.folder))
    problem = step.problem or ("" if file.is_file() else "it wrote no model")
    return Made(tool=tool, file=None if problem else file, step=step, problem=problem)


def _elsewhere(work: Work, tool: str, name: str, make: Callable[[str], Made]) -> Made:
    folder = work.cache / "environments" / name
    python, marker = folder / "bin" / "python", folder / ".installed"
    wanted = " ".join(ENVIRONMENTS[name])
    if not marker.is_file() or marker.read_text() != wanted:
        lines = (
            ["uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            ["uv", "pip", "install", "--quiet", "--python", str(python), *ENVIRONMENTS[name]],
        )
        for line in lines:
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode:
                return Made(tool=tool, problem=f"it cannot be installed: {zoo._sentence(done.stderr)}")  # noqa: SLF001
        marker.write_text(wanted)
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    return make(str(python))


def opened(work: Work, made_of: Made, sizes: Tensors, *, threads: int, compiles: bool) -> Call:
    """Return how a person calls the model: a session, a request compiled for the sizes of `sizes`, a module.

    `compiles` lets torch compile: not for what is called at many sizes.
    """
    if made_of.file is None:
        return _module(work, made_of.tool == TORCHAO, threads=threads, compiles=compiles)
    if made_of.tool in {FLOAT[1], NNCF}:
        return _openvino(made_of.file, sizes, threads)
    session = _session(made_of.file, threads, is_float=made_of.tool == BASELINE)
    names = [one.name for one in session.get_outputs()]
    return lambda given: dict(zip(names, session.run(None, dict(given)), strict=True))


def _session(path: Path, threads: int, *, is_float: bool) -> Any:
    """Open a model for exact sums on any CPU, as kit does."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    if not is_float and saturates():
        settings.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])


def _openvino(path: Path, sizes: Tensors, threads: int) -> Call:
    """Compile a model for fixed shapes, which are several times as fast as open ones; again when they change."""
    core = openvino.Core()
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    known: dict[tuple[Any, ...], Any] = {}

    def request_for(given: Tensors) -> Any:
        shapes = tuple((name, array.shape) for name, array in given.items())
        if shapes not in known:
            known.clear()
            model = core.read_model(path)
            model.reshape({name: openvino.PartialShape(list(shape)) for name, shape in shapes})
            known[shapes] = core.compile_model(model, "CPU", settings).create_infer_request()
        return known[shapes]

    def call(given: Tensors) -> dict[str, NDArray[Any]]:
        found = request_for(given).infer(dict(given), share_inputs=True)
        return {next(iter(port.names)): array for port, array in found.items()}

    request_for(sizes)
    return call


def _module(work: Work, is_int8: bool, *, threads: int, compiles: bool) -> Call:
    assert work.module is not None  # `made` told so
    from torch._inductor import config

    torch.set_num_threads(threads)
    name = "int8" if is_int8 else "fp32"
    if name not in work._known:  # noqa: SLF001 - its own, kept over the calls here
        module = work.module()
        if is_int8:
            folder = str(int8_inputs.packages(work.cache, "torchao"))
            sys.path += [folder] if folder not in sys.path else []
            quantization: Any = __import__("torchao.quantization", fromlist=["quantize_"])
            quantization.quantize_(module, quantization.Int8DynamicActivationInt8WeightConfig())
        work._known[name] = module  # noqa: SLF001
    module = work._known[name]  # noqa: SLF001
    config.freezing = True  # what its documentation advises for inference on CPUs
    ran = torch.compile(module, dynamic=False) if compiles else module
    outputs = [spec.name for spec in work.signature.outputs]
    inputs = [spec.name for spec in work.signature.inputs]

    def call(given: Tensors) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            found = ran(*(torch.from_numpy(given[name]) for name in inputs))
        several = found if isinstance(found, (tuple, list)) else (found,)
        return {name: one.numpy() for name, one in zip(outputs, several, strict=True)}

    return call


class Normalising(nn.Module):
    """A network of pictures that takes raw pixels, as the exported graph does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.mean, self.std = torch.tensor(int8_inputs.MEAN), torch.tensor(int8_inputs.STD)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the network answers."""
        found: torch.Tensor = self.model((pixels.float() / 255 - self.mean) / self.std)
        return found


class Vectors(nn.Module):
    """A network of texts: the vectors of its tokens."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        """Return the first output."""
        found: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, token_type_ids=kinds, return_dict=False)[0]
        return found


def minilm(folder: Path) -> nn.Module:
    """Read all-MiniLM-L6-v2."""
    from transformers import AutoModel

    return Vectors(AutoModel.from_pretrained(folder, local_files_only=True).eval()).eval()
