"""Torch modules and programs as sources: any inputs and outputs, and one sentence for what cannot work."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import pickle
import zipfile
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn

from exporters.graph.files import read
from exporters.graph.rules import layers
from exporters.options import OPSETS
from exporters.sources import Original, open_source
from kit.errors import BadInput, GateFailed, UsageError
from kit.runtime.onnxruntime import OnnxRuntimeRunner
from kit.samples import seeded
from kit.tasks.image import ImageClassification
from kit.tensors import Axis, Signature, TensorSpec
from tests.helpers.modules import Duo, duo_signature

PUBLISHED = Path(__file__).parent.parent / "artifacts" / "mnist-mlp"


def signature_of(*inputs: TensorSpec, outputs: tuple[TensorSpec, ...], **axes: Axis) -> Signature:
    return Signature(inputs=inputs, outputs=outputs, axes=axes)


def rows_of(width: int, outputs: int, **axes: Axis) -> Signature:
    """Rows of numbers in, rows of scores out."""
    return signature_of(
        TensorSpec(name="x", dtype="float32", shape=("batch", width)),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", outputs)),),
        **axes,
    )


def check(original: Original, folder: Path, *, atol: float = 1e-5, **sizes: int) -> OnnxRuntimeRunner:
    """Write it, and see that ONNX Runtime answers as it does, at sizes that it was not traced with."""
    folder.mkdir(exist_ok=True)
    runner = OnnxRuntimeRunner(original.write(folder, opset=20), signature=original.signature)
    inputs = seeded(original.signature, sizes=original.signature.usual_sizes(**sizes)).inputs
    expected, found = original.answer(inputs), runner.run(inputs)
    assert list(expected) == [spec.name for spec in original.signature.outputs]
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        assert np.allclose(found[name], values, atol=atol, rtol=1e-4)
    return runner


def test_two_inputs_two_outputs_and_two_axes(tmp_path: Path) -> None:
    original = open_source(Duo(), signature=duo_signature())
    check(original, tmp_path, batch=7, sequence=3)
    assert original.record.kind, original.record.name == ("module", "Duo")
    assert original.signature == duo_signature()


def test_examples_alone_tell_inputs_outputs_batch_and_vocabulary(tmp_path: Path) -> None:
    original = open_source(Duo(), inputs={"ids": np.zeros((1, 5), np.int64), "numbers": np.zeros((1, 3), np.float32)})
    assert original.signature.described() == {"ids": "int64 [batch, 5]", "numbers": "float32 [batch, 3]"}
    assert [spec.describe() for spec in original.signature.outputs] == ["float32 [batch, 4]", "float32 [batch, 5, 6]"]
    assert original.signature.input("ids").below == 11
    assert original.examples is not None
    assert original.examples[0].inputs["ids"].shape == (1, 5)
    check(original, tmp_path, batch=4)


def test_the_published_network_is_written_with_the_very_same_bytes(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from kit.lab import models

    module = models.build("mlp-512-256-128", shape=(28, 28), outputs=10)
    module.load_state_dict(load_file(next(PUBLISHED.glob("weights-*.safetensors"))))
    task = ImageClassification(labels=tuple("0123456789"), pipeline="mnist-ink@2", mean=(0.1307,), std=(0.3081,))
    with_task = open_source(module, task=task, signature=task.signature((28, 28)))
    model = onnx.load(str(with_task.write(tmp_path, opset=20)))
    published = next(PUBLISHED.glob("fp32-*.onnx"))
    model.producer_version = onnx.load(str(published)).producer_version  # cpu or cuda
    digest = hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    assert digest == hashlib.sha256(published.read_bytes()).hexdigest()
    assert digest.startswith("523ebd04")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    expected = module(torch.tensor((pixels / 255 - 0.1307) / 0.3081, dtype=torch.float32)).detach().numpy()
    assert np.allclose(with_task.answer({"pixels": pixels})["logits"], expected, atol=1e-3)


@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_the_oldest_and_the_newest_opset_are_written(opset: int, tmp_path: Path) -> None:
    path = open_source(nn.Linear(4, 3), signature=rows_of(4, 3)).write(tmp_path, opset=opset)
    (entry,) = onnx.load(str(path)).opset_import
    assert entry.version == opset


def test_no_trace_of_this_machine_is_left_in_the_graph(tmp_path: Path) -> None:
    encoded = open_source(Duo(), signature=duo_signature()).write(tmp_path, opset=20).read_bytes()
    assert str(Path(__file__).parent.parent).encode() not in encoded
    assert b".py" not in encoded


def test_layers_are_called_as_their_modules(tmp_path: Path) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.query(x) @ self.key(x).transpose(1, 2)

    path = open_source(Words(), inputs=(np.zeros((2, 3, 6), np.float32),)).write(tmp_path, opset=20)
    assert [one.name for one in layers(read(path).model)] == ["query", "key"]


Pair = namedtuple("Pair", "low high")  # noqa: PYI024 - as people have them


@dataclass
class Answer:
    scores: torch.Tensor
    parts: Any = None
    nothing: Any = None


class Answers(nn.Module):
    """Gives its input in a structure of any kind."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(x * 2)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda x: x, ["output"]),
        (lambda x: (x, x + 1), ["output_0", "output_1"]),
        (lambda x: {"a": x, "b": {"c": x + 1, "d": [x + 2]}}, ["a", "b_c", "b_d_0"]),
        (lambda x: Answer(x, parts=(x + 1, None, x + 2)), ["scores", "parts_0", "parts_2"]),
        (lambda x: Pair(x, x + 1), ["low", "high"]),
        (lambda x: {"x": x}, ["x_out"]),
    ],
)
def test_answers_of_any_structure_have_names(make: Any, names: list[str], tmp_path: Path) -> None:
    original = open_source(Answers(make), inputs=(np.ones((2, 3), np.float32),))
    assert [spec.name for spec in original.signature.outputs] == names
    check(original, tmp_path, batch=5)


def test_an_answer_that_is_no_tensor_is_named() -> None:
    with pytest.raises(UsageError, match="count is int"):
        open_source(Answers(lambda x: {"y": x, "count": 3}), inputs=(np.ones((2, 3), np.float32),))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]) -> dict[str, Any]:
        y, state = self.cells(x, state)
        return {"y": y, "state": state}


def test_state_goes_in_and_comes_out(tmp_path: Path) -> None:
    state = np.zeros((1, 2, 6), np.float32)
    signature = signature_of(
        TensorSpec(name="x", dtype="float32", shape=("batch", "time", 4)),
        TensorSpec(name="state_0", dtype="float32", shape=(1, "batch", 6)),
        TensorSpec(name="state_1", dtype="float32", shape=(1, "batch", 6)),
        outputs=(
            TensorSpec(name="y", dtype="float32", shape=("batch", "time", 6)),
            TensorSpec(name="hidden", dtype="float32", shape=(1, "batch", 6)),
            TensorSpec(name="cell", dtype="float32", shape=(1, "batch", 6)),
        ),
    )
    inputs = (np.zeros((2, 5, 4), np.float32), (state, state))
    original = open_source(Recurrent(), inputs=inputs, signature=signature)
    check(original, tmp_path, batch=3, time=2)


@pytest.mark.parametrize(
    ("kind", "more"),
    [(nn.GRU, {"batch_first": True, "num_layers": 2, "bidirectional": True}), (nn.LSTM, {"bias": False})],
)
def test_recurrent_layers_take_sequences_of_any_length(
    kind: type[nn.RNNBase], more: dict[str, Any], tmp_path: Path
) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = kind(4, 6, **more)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.cells(x)[0]

    axes = ("batch", "time") if "batch_first" in more else ("time", "batch")
    signature = signature_of(
        TensorSpec(name="x", dtype="float32", shape=(*axes, 4)),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(*axes, 12 if "bidirectional" in more else 6)),),
    )
    check(open_source(Whole(), signature=signature), tmp_path, batch=3, time=9)
    kinds = [node.op_type for node in read(tmp_path / "model.onnx").model.graph.node]
    assert kinds.count(kind.__name__) == more.get("num_layers", 1)


def test_arguments_that_are_no_tensors_stay_as_the_examples_have_them(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor, factor: float = 1.0, *, negative: bool = False) -> torch.Tensor:
            return -x * factor if negative else x * factor

    original = open_source(Scaled(), inputs={"x": np.ones((2, 3), np.float32), "factor": 3.0, "negative": True})
    check(original, tmp_path)
    assert original.answer({"x": np.ones((1, 3), np.float32)})["output"][0, 0] == -3.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_keep_their_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    word = str(dtype).removeprefix("torch.")
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    original = open_source(module, inputs=(np.ones((2, 4), word),))
    check(original, tmp_path, atol=1e-2)
    assert {
        values.dtype.name for values in map(read(tmp_path / "model.onnx").values, ["model.0.weight", "model.2.bias"])
    } == {word}


def test_bfloat16_weights_stay_and_the_border_is_float32(tmp_path: Path) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rows = nn.Embedding(7, 4, dtype=torch.bfloat16)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.rows(ids)

    original = open_source(Table(), inputs=(np.zeros((2, 3), np.int64),))
    assert original.signature.outputs[0].dtype == "float32"
    path = original.write(tmp_path, opset=20)
    assert read(path).constants["model.rows.weight"].data_type == onnx.TensorProto.BFLOAT16


def test_state_that_is_no_tensor_does_not_matter(tmp_path: Path) -> None:
    class Versioned(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    check(open_source(Versioned(4, 3), signature=rows_of(4, 3)), tmp_path)


def test_a_module_in_training_is_read_in_evaluation_and_given_back_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    module[2].eval()
    original = open_source(module, signature=rows_of(4, 3))
    x = np.ones((2, 4), np.float32)
    assert np.array_equal(original.answer({"x": x})["y"], original.answer({"x": x})["y"])
    original.close()
    assert (module.training, module[1].training, module[2].training) == (True, True, False)
    with pytest.raises(UsageError, match="closed"):
        original.answer({"x": x})


def test_dropout_that_is_always_on_is_named() -> None:
    class Always(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(super().forward(x), 0.5)

    with pytest.raises(GateFailed, match=r"each time.*dropout is on even in evaluation") as caught:
        open_source(Always(4, 64), signature=rows_of(4, 64))
    assert "self.training" in caught.value.hint


def test_a_module_that_draws_numbers_is_refused() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.randn(3)

    with pytest.raises(GateFailed, match=r"each time.*random numbers \(randn\)"):
        open_source(Noisy(4, 3), signature=rows_of(4, 3))


def test_a_batch_that_a_squeeze_loses_is_named() -> None:
    class Squeezed(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).squeeze()

    with pytest.raises(
        GateFailed, match=r"with batch 1 the module gives y as \(3,\), expected float32 \[batch, 3\]"
    ) as caught:
        open_source(Squeezed(4, 3), signature=rows_of(4, 3))
    assert "squeeze(-1)" in caught.value.hint


@pytest.mark.parametrize("name", ["0.weight", "model.0.weight", "relu", "linear", "val_0"])
def test_an_input_may_be_called_like_anything_inside(name: str, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    signature = dataclasses.replace(
        rows_of(4, 3),
        inputs=(TensorSpec(name=name, dtype="float32", shape=("batch", 4)),),
        outputs=(TensorSpec(name="linear_1", dtype="float32", shape=("batch", 3)),),
    )
    check(open_source(module, signature=signature), tmp_path)


def test_weights_may_be_called_like_values_inside_the_graph(tmp_path: Path) -> None:
    class Names(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("linear", "relu", "val_0", "add", "x", "output"):
                setattr(self, name, nn.Parameter(torch.randn(4, 4)))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(F.linear(x, self.linear) + self.add[0])
            return y @ self.relu @ self.val_0 * self.x[0] + self.output[1]

    check(open_source(Names(), inputs=(np.ones((2, 4), np.float32),)), tmp_path)


def test_an_axis_that_the_code_fixes_is_named_with_its_size() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, : int(x.shape[1])] * (1.0 if x.shape[1] == 9 else 2.0)

    signature = signature_of(
        TensorSpec(name="x", dtype="float32", shape=("batch", "time")),
        outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", "time")),),
        time=Axis(typical=(9,)),
    )
    with pytest.raises(GateFailed, match="the axis 'time' at 9"):
        open_source(Fixed(), signature=signature)


def test_an_axis_that_must_be_a_multiple_says_so_and_then_works(tmp_path: Path) -> None:
    class Quarters(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(x.shape[0], x.shape[1] // 4, 4).mean(-1)

    def signature(axis: Axis) -> Signature:
        return signature_of(
            TensorSpec(name="x", dtype="float32", shape=("batch", "time")),
            outputs=(TensorSpec(name="y", dtype="float32", shape=("batch", "frames")),),
            time=axis,
        )

    with pytest.raises(GateFailed, match="time"):
        open_source(Quarters(), signature=signature(Axis(typical=(8,))))
    check(open_source(Quarters(), signature=signature(Axis(least=4, multiple_of=4, most=64))), tmp_path, time=20)


def test_code_that_decides_by_values_is_one_clear_error() -> None:
    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :3] * float(x.sum().item() > 0 and x.max().item())

    with pytest.raises(GateFailed, match="could not export"):
        open_source(Looks(), signature=rows_of(4, 3))


def test_a_module_that_cannot_run_a_batch_is_one_clear_error() -> None:
    class Pairs(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(1, 5)[:, :3]

    with pytest.raises(GateFailed, match="PyTorch cannot run the module with batch 2"):
        open_source(Pairs(), signature=rows_of(4, 3))


def test_a_signature_that_does_not_fit_is_refused() -> None:
    module = nn.Linear(4, 3)
    with pytest.raises(UsageError, match=r"says that y is float32 \[batch, 2\], the module gives float32 \[batch, 3\]"):
        open_source(module, signature=rows_of(4, 2))
    with pytest.raises(GateFailed, match="PyTorch cannot run"):
        open_source(module, signature=rows_of(5, 3))
    with pytest.raises(UsageError, match="example inputs or a signature"):
        open_source(module)
    with pytest.raises(UsageError, match="no axis 'sequence'"):
        open_source(module, signature=rows_of(4, 3), axes={"sequence": Axis()})
    with pytest.raises(UsageError, match="is no model"):
        open_source(3.5)


def test_an_output_whose_size_depends_on_values_varies(tmp_path: Path) -> None:
    class Found(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nonzero(x > 0)

    original = open_source(Found(), inputs=(np.array([[1.0, -1.0], [2.0, 0.5]], np.float32),))
    assert original.signature.outputs[0].varies
    with OnnxRuntimeRunner(original.write(tmp_path, opset=20)) as runner:
        assert runner.run({"x": np.ones((3, 2), np.float32)})["output"].shape == (6, 2)


def test_a_picture_task_normalises_each_channel_inside_the_graph(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    task = ImageClassification(
        labels=("a", "b", "c"), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), channels_last=True
    )
    original = open_source(module, inputs=(np.zeros((1, 3, 8, 8), np.float32),), task=task)
    assert original.signature.described() == {"pixels": "uint8 [batch, 8, 8, 3]"}
    check(original, tmp_path, atol=1e-4, batch=3)
    assert [node.op_type for node in read(tmp_path / "model.onnx").model.graph.node][:3] == [
        "Cast",
        "Transpose",
        "Conv",
    ]


def test_answers_are_computed_in_pieces_bounded_by_bytes() -> None:
    sizes: list[int] = []

    class Watched(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if isinstance(x.shape[0], int):
                sizes.append(x.shape[0])
            return super().forward(x)

    original = open_source(Watched(2**18, 1), signature=rows_of(2**18, 1))
    sizes.clear()
    assert original.answer({"x": np.zeros((150, 2**18), np.float32)})["y"].shape == (150, 1)
    assert max(sizes) <= 63  # 64 MB of inputs
    assert sum(sizes) == 150


def test_large_weights_are_written_beside_the_graph(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3000, 3000), nn.ReLU(), nn.Linear(3000, 3000))
    original = open_source(module, signature=rows_of(3000, 3000))
    check(original, tmp_path, atol=1e-4)
    assert {one.name for one in tmp_path.iterdir()} == {"model.onnx", "model.data"}
    assert (tmp_path / "model.onnx").stat().st_size < 100_000
    assert all(
        flag.i == 0
        for node in read(tmp_path / "model.onnx").model.graph.node
        for flag in node.attribute
        if flag.name == "transB"
    )


def test_a_program_of_torch_export_keeps_its_axes_and_bounds(tmp_path: Path) -> None:
    dims = {0: torch.export.Dim("rows"), 1: torch.export.Dim("words", min=2, max=32)}
    program = torch.export.export(
        Duo().eval(), (torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 3)), dynamic_shapes=(dims, {0: dims[0]})
    )
    path = tmp_path / "duo.pt2"
    torch.export.save(program, path)
    for source in (program, path):
        original = open_source(source)
        assert original.signature.described() == {"ids": "int64 [batch, ids_1]", "numbers": "float32 [batch, 3]"}
        assert (original.signature.axes["ids_1"].least, original.signature.axes["ids_1"].most) == (2, 32)
        assert [spec.name for spec in original.signature.outputs] == ["scores", "vectors"]
        check(original, tmp_path / "out", batch=3, ids_1=7)
    assert (original.name, original.record.kind, original.record.name) == ("duo", "program", "duo.pt2")
    assert len(original.record.sha256) == 64


def test_a_program_that_this_torch_cannot_read_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "old.pt2"
    path.write_bytes(b"no program")
    with pytest.raises(BadInput, match=r"torch [\d.]+ cannot read old.pt2"):
        open_source(path)
    with pytest.raises(BadInput, match="no file"):
        open_source(tmp_path / "none.pt2")
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(UsageError, match="may hold code"):
        open_source(tmp_path / "model.pth")


class _Touches:
    """Pickled, it makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def _entries(tmp_path: Path, changes: dict[str, Any]) -> Path:
    """A saved program with entries that are changed, by a function of their JSON, or added."""
    sized = {0: torch.export.Dim("rows")}
    program = torch.export.export(nn.Linear(3, 2), (torch.zeros(4, 3),), dynamic_shapes=(sized,))
    torch.export.save(program, tmp_path / "kept.pt2")
    path = tmp_path / "changed.pt2"
    with zipfile.ZipFile(tmp_path / "kept.pt2") as kept, zipfile.ZipFile(path, "w") as changed:
        for name in kept.namelist():
            content, change = kept.read(name), changes.pop(name.partition("/")[2], None)
            changed.writestr(name, content if change is None else json.dumps(change(json.loads(content))))
        for name, content in changes.items():
            changed.writestr(f"kept/{name}", content)
    return path


def _in_words(change: tuple[str, str]) -> Any:
    return lambda described: json.loads(json.dumps(described).replace(*change))


def test_a_program_as_it_was_saved_is_read_again_by_its_entries(tmp_path: Path) -> None:
    assert open_source(_entries(tmp_path, {})).signature.described() == {"input": "float32 [batch, 3]"}


def test_nothing_that_lies_in_a_program_is_run(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    weights = "data/weights/model_weights_config.json"
    config = {
        "config": {"x": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}}
    }
    quoted = f"Symbol(__import__('pathlib').Path('{touched}').touch() or 's0')"
    for changes, words in (
        ({"data/constants/model_constants_config.json": lambda _: config,
          "data/constants/opaque_obj_0": pickle.dumps(_Touches(touched))}, "opaque_obj_0 is an object in a pickle"),
        ({"models/model.json": _in_words(('"expr_str": "', f'"expr_str": "{quoted} + '))}, "no arithmetic"),
        ({"models/model.json": _in_words(('"in_spec": "', '"__enum__": 1, "in_spec": "'))}, "modules imported"),
        ({"data/aotinductor/model/x.so": b""}, "is compiled"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="may hold code") as caught:
            open_source(_entries(tmp_path, changes))
        assert words in str(caught.value)
    buffer = io.BytesIO()
    torch.save(_Touches(touched), buffer)

    def pickled(found: Any) -> Any:
        name = next(iter(found["config"]))
        found["config"][name].update(use_pickle=True, path_name="weight_9")
        return found

    with pytest.raises(BadInput, match="cannot read"):
        open_source(_entries(tmp_path, {weights: pickled, "data/weights/weight_9": buffer.getvalue()}))
    assert not touched.exists()


def test_infinite_answers_are_answers(tmp_path: Path) -> None:
    original = open_source(Answers(lambda x: torch.where(x > 0, x, -math.inf)), inputs=(np.ones((2, 3), np.float32),))
    check(original, tmp_path)


def test_arrays_of_any_layout_and_byte_order_are_examples_and_inputs() -> None:
    rows = np.random.default_rng(0).random((4, 3), np.float32)
    original = open_source(nn.Linear(3, 2).eval(), inputs={"input": rows[:, ::-1]})
    name = original.signature.inputs[0].name
    expected = original.answer({name: np.ascontiguousarray(rows[:, ::-1])})["output"]
    for given in (rows[:, ::-1], np.asfortranarray(rows[:, ::-1])):
        # Torch adds up in another order where rows lie in another one, on some CPUs.
        assert np.allclose(original.answer({name: given})["output"], expected, rtol=1e-6, atol=1e-7)
    assert len(original.answer({name: rows[:1][::-1]})["output"]) == 1
    foreign = open_source(nn.Linear(3, 2).eval(), inputs={"input": rows.astype(">f4")})
    assert foreign.signature.inputs[0].dtype == "float32"


def test_an_example_that_is_no_array_of_numbers_is_named() -> None:
    for wrong in (np.array([["a", "b", "c"]]), np.array([[None, 1, 2]], object)):
        with pytest.raises(UsageError, match="the input input is no tensor"):
            open_source(nn.Linear(3, 2).eval(), inputs={"input": wrong})
