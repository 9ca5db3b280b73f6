"""Models of which one layer is ruined by quantizing it, and all that candidates of them are held to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
from onnx import numpy_helper

from exporters import workbench
from exporters.workbench import Workbench
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.samples import Splits
from kit.tensors import Signature
from tests.helpers.originals import OnnxOriginal, noise


def with_outlier(model: onnx.ModelProto, layer: str, following: str) -> onnx.ModelProto:
    """Give a layer one huge weight from a unit that is always off: its scale is ruined, its answers are as before."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    weight, bias, behind = (
        numpy_helper.to_array(held[name]).copy() for name in (f"{layer}.weight", f"{layer}.bias", f"{following}.weight")
    )
    weight[:, 0], bias[0], behind[0, 0] = 0.0, -1.0, 3000.0
    for name, values in ((f"{layer}.weight", weight), (f"{layer}.bias", bias), (f"{following}.weight", behind)):
        held[name].CopyFrom(numpy_helper.from_array(values, name))
    return model


def labelled(model: onnx.ModelProto, signature: Signature) -> Splits:
    """Noise labelled by the model itself: it is right on all of it."""
    every = noise(signature, 600)
    with OnnxRuntimeRunner(model.SerializeToString()) as runner:
        labels = runner.run(every.inputs)["y"].argmax(axis=1)
    every = dataclasses.replace(every, targets={"labels": labels})
    parts = [every.take(signature, slice(start, start + 200)) for start in (0, 200, 400)]
    return Splits(dataset="noise", train=(parts[0],), validation=(parts[1],), test=(parts[2],))


def workbench_of(model: onnx.ModelProto, signature: Signature, folder: Path, *, max_loss: float = 0.03) -> Workbench:
    data = labelled(model, signature)
    original = OnnxOriginal(model, signature)
    return workbench.of(original, folder, opset=20, data=data, metric="top-1", max_loss=max_loss)
