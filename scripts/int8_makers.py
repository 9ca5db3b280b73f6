"""Make an int8 file of a float ONNX file by one tool; run by the Python of that tool's own environment.

    python int8_makers.py TOOL MODEL.onnx SAMPLES.npz OUT [--transformer]

TOOL is one of the functions of TOOLS. The samples are named `NUMBER|INPUT`, each a batch of its own.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Feed = dict[str, Any]


def static(model: Path, feeds: list[Feed], out: Path, *, transformer: bool) -> None:  # noqa: ARG001 - all tools are called alike
    """ONNX Runtime's quantize_static as its documentation shows it: QDQ, a scale per channel, the whole range."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no stubs
        """The samples, one batch at a time."""

        def __init__(self) -> None:
            self.left = iter(feeds)

        def __len__(self) -> int:
            return len(feeds)

        def get_next(self) -> Feed | None:
            return next(self.left, None)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.left = iter(feeds[start_index:end_index])

    with tempfile.TemporaryDirectory() as folder:
        quantization.quantize_static(
            *(str(_prepared(model, Path(folder))), str(out), Reader()),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )


def dynamic(model: Path, feeds: list[Feed], out: Path, *, transformer: bool) -> None:  # noqa: ARG001
    """ONNX Runtime's quantize_dynamic, a scale per channel."""
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder:
        prepared = str(_prepared(model, Path(folder)))
        quantization.quantize_dynamic(prepared, str(out), weight_type=quantization.QuantType.QInt8, per_channel=True)


def _prepared(model: Path, folder: Path) -> Path:
    """Return the model after quant_pre_process; without symbolic shapes where it cannot follow them."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = folder / "prepared.onnx"
    try:
        quant_pre_process(str(model), str(path))
    except Exception as error:  # noqa: BLE001 - it raises bare ones, and names this way out itself
        print(f"without symbolic shapes, for: {str(error).splitlines()[:1]}")
        quant_pre_process(str(model), str(path), skip_symbolic_shape=True)
    return path


def nncf(model: Path, feeds: list[Feed], out: Path, *, transformer: bool) -> None:
    """NNCF's post-training quantization of OpenVINO's graph, with its default preset."""
    import nncf as tool  # type: ignore[import-not-found, unused-ignore]  # in an environment of its own
    import openvino

    kind = tool.ModelType.TRANSFORMER if transformer else None
    made = tool.quantize(
        openvino.Core().read_model(model), tool.Dataset(feeds), model_type=kind, subset_size=len(feeds)
    )
    openvino.save_model(made, out, compress_to_fp16=False)


def optimum(model: Path, feeds: list[Feed], out: Path, *, transformer: bool) -> None:  # noqa: ARG001
    """Optimum's ORTQuantizer with its dynamic configuration for CPUs with AVX512-VNNI."""
    from optimum.onnxruntime import ORTQuantizer  # type: ignore[import-not-found, unused-ignore]
    from optimum.onnxruntime.configuration import (  # type: ignore[import-not-found, unused-ignore]
        AutoQuantizationConfig,
    )

    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    with tempfile.TemporaryDirectory() as folder:
        ORTQuantizer(model).quantize(save_dir=folder, quantization_config=config)
        shutil.copy(next(Path(folder).glob("*.onnx")), out)


TOOLS: dict[str, Callable[..., None]] = {"static": static, "dynamic": dynamic, "nncf": nncf, "optimum": optimum}


def main() -> None:
    """Read the samples, make the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("model", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--transformer", action="store_true")
    asked = parser.parse_args()
    feeds: dict[str, Feed] = {}
    with np.load(asked.samples) as held:
        for key in held.files:
            number, _, name = key.partition("|")
            feeds.setdefault(number, {})[name] = held[key]
    TOOLS[asked.tool](asked.model, list(feeds.values()), asked.out, transformer=asked.transformer)


if __name__ == "__main__":
    main()
