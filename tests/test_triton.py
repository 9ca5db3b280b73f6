"""`kit export --triton`: NVIDIA's own message reads the config, and what ONNX Runtime runs is what was written."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from exporters.triton import MOST_ROWS, Repository, TritonOptions, write_repository
from kit import ready
from kit.bundle import Bundle
from kit.choices import Goal, Provider
from kit.errors import BundleInvalid, UsageError
from kit.runtime import choice as tuned
from kit.runtime.base import RunnerOptions
from kit.system import files
from kit.tensors import Axis, Signature
from tests.conftest import Kit
from tests.helpers import onnx_files
from tests.helpers.blocked import BLOCK, WORKSHOP
from tests.helpers.bundles import overwrite


def read(done: Repository) -> Any:
    """The config as Triton reads it; what it does not know is an error."""
    return text_format.Parse((done.folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def dims(tensors: Any) -> dict[str, list[int]]:
    return {one.name: list(one.dims) for one in tensors}


def refused_by_the_backend(done: Repository) -> str:
    """What Triton's onnxruntime backend checks when it loads a model: names, and shapes as ONNX Runtime reports them."""
    config = read(done)
    session = onnxruntime.InferenceSession(done.folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    for said, found, exact in (
        (config.input, session.get_inputs(), False),
        (config.output, session.get_outputs(), True),
    ):
        if {one.name for one in said} != {one.name for one in found}:
            return "names"
        for one in said:
            graph = next(tensor.shape for tensor in found if tensor.name == one.name)
            model = [size if isinstance(size, int) else -1 for size in graph]
            shape = list(one.reshape.shape) if one.HasField("reshape") else list(one.dims)
            full = [-1, *shape] if config.max_batch_size else shape
            if not model and set(shape) != {1}:
                return f"{one.name} is a single number"
            if model and config.max_batch_size and model[0] != -1:
                return f"{one.name} has no batch"
            same = len(model) == len(full) and all(
                size == wanted or (size == -1 and not exact) for size, wanted in zip(model, full, strict=False)
            )
            if model and not same:
                return f"{one.name}: {model}, {full}"
    return ""


def graph(
    path: Path, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], *, kind: int = TensorProto.FLOAT
) -> Path:
    """A model whose outputs are its inputs, one by one."""
    nodes = [helper.make_node("Identity", [one], [other]) for one, other in zip(inputs, outputs, strict=True)]
    infos = [
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in side.items()] for side in (inputs, outputs)
    ]
    made = helper.make_graph(nodes, "same", *infos)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def with_axis(bundle: Bundle, **axes: Axis) -> Bundle:
    signature = dataclasses.replace(bundle.signature, axes={**bundle.signature.axes, **axes})
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, signature=signature))


def choose(bundle: Bundle, variant: str, runtime: str = "onnxruntime", **options: Any) -> None:
    tuned.remember(
        bundle,
        tuned.Choice(
            variant=variant,
            runtime=runtime,
            options=RunnerOptions(**options),
            goal=Goal.THROUGHPUT,
            sizes={"batch": 128},
            p50_us=10.0,
            speedup=2.0,
            low=1.9,
            high=2.1,
            measured="2026-01-01T00:00:00Z",
            runtime_version=tuned.runtime_version(runtime),
        ),
    )


def test_a_bundle_becomes_a_model_that_triton_reads(tiny: Bundle, tmp_path: Path) -> None:
    done = write_repository(tiny, tmp_path / "models")
    config = read(done)
    assert done.folder == tmp_path / "models" / "tiny"
    assert (config.name, config.backend, config.default_model_filename) == ("tiny", "onnxruntime", "model.onnx")
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (MOST_ROWS, True)
    assert [(one.name, model_config_pb2.DataType.Name(one.data_type), list(one.dims)) for one in config.input] == [
        ("pixels", "TYPE_UINT8", [4, 4])
    ]
    assert [(one.name, model_config_pb2.DataType.Name(one.data_type), list(one.dims)) for one in config.output] == [
        ("logits", "TYPE_FP32", [3])
    ]
    assert [(one.count, one.kind) for one in config.instance_group] == [
        (1, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    ]
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert refused_by_the_backend(done) == ""
    assert sorted(one.relative_to(done.folder).as_posix() for one in done.folder.rglob("*.*")) == [
        "1/model.onnx",
        "config.pbtxt",
    ]
    assert files.sha256(done.folder / "1" / "model.onnx") == tiny.variant().graph.sha256


def test_several_tensors_keep_their_open_axes(duo: Bundle, tmp_path: Path) -> None:
    done = write_repository(duo, tmp_path / "models")
    config = read(done)
    assert dims(config.input) == {"ids": [-1], "numbers": [3]}
    assert dims(config.output) == {"scores": [4], "vectors": [-1, 6]}
    assert refused_by_the_backend(done) == ""


def test_a_ready_model_needs_no_bundle(tmp_path: Path) -> None:
    found = ready.find(onnx_files.scores(tmp_path / "my words.onnx"))
    done = write_repository(found, tmp_path / "models")
    assert done.folder.name == "my-words"
    assert (done.max_batch_size, dims(read(done).input)) == (MOST_ROWS, {"ids": [-1], "mask": [-1]})
    assert refused_by_the_backend(done) == ""


@pytest.mark.parametrize(
    ("inputs", "outputs", "reason"),
    [
        ({"x": [2, 4]}, {"y": [2, 4]}, "no batch axis"),
        ({"x": ["batch", 4], "state": [1, "batch", 3]}, {"y": ["batch", 4], "after": [1, "batch", 3]}, "first axis"),
        ({"x": ["batch", 4], "t": [1]}, {"y": ["batch", 4], "u": [1]}, "no batch axis"),
    ],
)
def test_without_a_leading_batch_everywhere_dims_are_whole_shapes(
    tmp_path: Path, inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], reason: str
) -> None:
    done = write_repository(ready.find(graph(tmp_path / "same.onnx", inputs, outputs)), tmp_path / "models")
    config = read(done)
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (0, False)
    whole = {name: [one if isinstance(one, int) else -1 for one in shape] for name, shape in inputs.items()}
    assert dims(config.input) == whole
    assert reason in " ".join(done.remarks)
    assert refused_by_the_backend(done) == ""


def test_one_number_for_each_sample_is_reshaped(tmp_path: Path) -> None:
    done = write_repository(
        ready.find(graph(tmp_path / "n.onnx", {"x": ["batch"]}, {"y": ["batch"]})), tmp_path / "models"
    )
    config = read(done)
    assert (dims(config.input), dims(config.output)) == ({"x": [1]}, {"y": [1]})
    assert [(one.HasField("reshape"), list(one.reshape.shape)) for one in (*config.input, *config.output)] == [
        (True, []),
        (True, []),
    ]
    assert refused_by_the_backend(done) == ""


def test_an_output_says_what_the_graph_says_even_where_kit_knows_more(tmp_path: Path) -> None:
    """Triton compares outputs size by size: a size that the graph leaves open must be open in the config."""
    path = graph(tmp_path / "open.onnx", {"x": ["batch", 4]}, {"y": ["batch", "unknown"]})
    made = onnx.load(path)
    made.graph.node[0].op_type = "Reshape"  # to a shape that no one can infer
    made.graph.node[0].input.append("shape")
    made.graph.node.insert(0, helper.make_node("Shape", ["x"], ["shape"]))
    onnx.save(made, path)
    found = ready.find(path)
    done = write_repository(found, tmp_path / "models")
    assert refused_by_the_backend(done) == ""


def unknown_rank(path: Path, *, count: str) -> Path:
    """A model whose answer has as many axes as `count` says when it runs, which no shape inference knows."""
    graph(path, {"x": ["batch", 4]}, {"y": ["batch", 4]})
    made = onnx.load(path)
    del made.graph.node[:]
    made.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), name)
        for name, value in (("none", 0), ("one", 1), ("two", 2))
    )
    made.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
            helper.make_node("Cast", ["most"], ["given"], to=TensorProto.INT64),
            helper.make_node("Mul", ["given", "none"], ["nothing"]),
            helper.make_node("Add", ["nothing", count], ["count"]),
            helper.make_node("Range", ["none", "count", "one"], ["places"]),
            helper.make_node("Shape", ["x"], ["sizes"]),
            helper.make_node("Gather", ["sizes", "places"], ["shape"]),
            helper.make_node("Reshape", ["x", "shape"], ["y"]),
        ]
    )
    made.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(made, path)
    return path


@pytest.mark.parametrize(("count", "words"), [("two", "how many axes y has"), ("given", "no inputs that")])
def test_an_output_of_unknown_rank_is_refused(tmp_path: Path, count: str, words: str) -> None:
    """Triton would take it for a single number."""
    found = ready.find(unknown_rank(tmp_path / "open.onnx", count=count))
    if count == "given":
        found = dataclasses.replace(
            found,
            samples=(),
            problem="none was tried",
            manifest=dataclasses.replace(found.manifest, signature=_scalar(found)),
        )
    with pytest.raises((UsageError, BundleInvalid), match=words):
        write_repository(found, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def _scalar(bundle: Bundle) -> Signature:
    outputs = tuple(dataclasses.replace(one, shape=()) for one in bundle.signature.outputs)
    return dataclasses.replace(bundle.signature, outputs=outputs)


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        *[
            (TensorProto.BOOL, "BOOL"),
            (TensorProto.INT8, "INT8"),
            (TensorProto.INT16, "INT16"),
            (TensorProto.INT32, "INT32"),
        ],
        *[(TensorProto.INT64, "INT64"), (TensorProto.UINT8, "UINT8"), (TensorProto.UINT16, "UINT16")],
        *[(TensorProto.UINT32, "UINT32"), (TensorProto.UINT64, "UINT64"), (TensorProto.FLOAT16, "FP16")],
        *[(TensorProto.FLOAT, "FP32"), (TensorProto.DOUBLE, "FP64")],
    ],
)
def test_every_dtype_has_its_type(tmp_path: Path, kind: int, word: str) -> None:
    path = graph(tmp_path / "same.onnx", {"x": ["batch", 2]}, {"y": ["batch", 2]}, kind=kind)
    config = read(write_repository(ready.find(path), tmp_path / "models"))
    assert model_config_pb2.DataType.Name(config.input[0].data_type) == f"TYPE_{word}"


def test_names_are_quoted(tmp_path: Path) -> None:
    name = 'a "b" \\ größe:0'
    done = write_repository(
        ready.find(graph(tmp_path / "same.onnx", {name: ["batch", 2]}, {"y": ["batch", 2]})), tmp_path / "models"
    )
    assert [one.name for one in read(done).input] == [name]


def test_weights_lie_beside_the_model_under_their_own_name(tmp_path: Path) -> None:
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    path = graph(tmp_path / "big.onnx", {"x": ["batch", 4]}, {"y": ["batch", 3]})
    made = onnx.load(path)
    made.graph.node[0].CopyFrom(helper.make_node("MatMul", ["x", "w"], ["y"]))
    made.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    onnx.save(made, path, save_as_external_data=True, location="big.weights", size_threshold=0)
    done = write_repository(ready.find(path), tmp_path / "models")
    assert {one.name for one in (done.folder / "1").iterdir()} == {"model.onnx", "big.weights"}
    session = onnxruntime.InferenceSession(done.folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], x @ weights)


def test_what_was_tuned_decides_unless_something_is_asked_for(tiny: Bundle, tmp_path: Path) -> None:
    choose(tiny, "fp32", threads=2, arena=False, spinning=False)
    done = write_repository(tiny, tmp_path / "models")
    config = read(done)
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert config.parameters["enable_mem_arena"].string_value == "0"
    assert config.max_batch_size == 128
    assert any("no word for: no spinning" in one for one in done.remarks)
    config = read(write_repository(tiny, tmp_path / "models", TritonOptions(threads=1)))
    assert (config.parameters["intra_op_thread_count"].string_value, config.max_batch_size) == ("1", MOST_ROWS)


def test_a_choice_of_openvino_is_said_to_run_elsewhere(tiny: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    choose(tiny, "fp32", "openvino", threads=2)
    done = write_repository(tiny, tmp_path / "models")
    assert read(done).backend == "onnxruntime"
    assert any("Triton runs it in its onnxruntime backend" in one and "openvino" in one for one in done.remarks)


@pytest.mark.parametrize(("provider", "accelerators"), [(Provider.CUDA, []), (Provider.TENSORRT, ["tensorrt"])])
def test_a_gpu_is_asked_for_by_the_provider(
    tiny: Bundle, tmp_path: Path, provider: Provider, accelerators: list[str]
) -> None:
    config = read(write_repository(tiny, tmp_path / "models", TritonOptions(provider=provider)))
    assert config.instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    told = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert [one.name for one in told] == accelerators


def test_variants_of_the_cpu_are_not_given_to_a_gpu(digits: Bundle, tmp_path: Path) -> None:
    done = write_repository(digits, tmp_path / "models", TritonOptions(variant="int8-dynamic"))
    assert refused_by_the_backend(done) == ""
    with pytest.raises(UsageError, match="the CPU alone"):
        write_repository(digits, tmp_path / "models", TritonOptions(variant="int8-dynamic", provider=Provider.CUDA))


@pytest.mark.parametrize(("bits", "is_said"), [(7, False), (8, True)])
def test_weights_that_may_saturate_in_triton_are_said(digits: Bundle, tmp_path: Path, bits: int, is_said: bool) -> None:
    changed = [
        dataclasses.replace(
            one, quantization=one.quantization and dataclasses.replace(one.quantization, weight_bits=bits)
        )
        for one in digits.variants
    ]
    bundle = dataclasses.replace(digits, manifest=dataclasses.replace(digits.manifest, variants=tuple(changed)))
    done = write_repository(bundle, tmp_path / "models", TritonOptions(variant="int8-qdq"))
    assert any("saturate" in one for one in done.remarks) == is_said


def test_max_batch_size_keeps_to_the_axis(tiny: Bundle, tmp_path: Path) -> None:
    few = with_axis(tiny, batch=Axis(most=8))
    assert write_repository(few, tmp_path / "a").max_batch_size == 8
    assert write_repository(few, tmp_path / "b", TritonOptions(max_batch_size=4)).max_batch_size == 4
    with pytest.raises(UsageError, match="1 to 8"):
        write_repository(few, tmp_path / "c", TritonOptions(max_batch_size=9))
    one = write_repository(with_axis(tiny, batch=Axis(most=1)), tmp_path / "d")
    assert (one.max_batch_size, read(one).HasField("dynamic_batching")) == (1, False)
    eights = with_axis(tiny, batch=Axis(least=8, multiple_of=8))
    assert write_repository(eights, tmp_path / "e").max_batch_size == 0
    with pytest.raises(UsageError, match="changes nothing"):
        write_repository(eights, tmp_path / "f", TritonOptions(max_batch_size=8))
    with pytest.raises(UsageError):
        TritonOptions(max_batch_size=0)


def test_answers_whose_size_depends_on_values_are_not_joined(tiny: Bundle, tmp_path: Path) -> None:
    outputs = tuple(dataclasses.replace(one, varies=True) for one in tiny.signature.outputs)
    signature = dataclasses.replace(tiny.signature, outputs=outputs)
    varying = dataclasses.replace(tiny, manifest=dataclasses.replace(tiny.manifest, signature=signature))
    config = read(write_repository(varying, tmp_path / "models"))
    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (MOST_ROWS, False)


def test_the_same_again_writes_nothing_and_another_replaces_it(digits: Bundle, tmp_path: Path) -> None:
    first = write_repository(digits, tmp_path / "models")
    before = (first.folder / "1" / "model.onnx").stat()
    again = write_repository(digits, tmp_path / "models")
    assert (first.is_new, again.is_new) == (True, False)
    assert (first.folder / "1" / "model.onnx").stat().st_mtime_ns == before.st_mtime_ns
    other = write_repository(digits, tmp_path / "models", TritonOptions(variant="int8-qdq"))
    assert other.is_new
    assert files.sha256(other.folder / "1" / "model.onnx") == digits.variant("int8-qdq").graph.sha256
    assert [one.name for one in (tmp_path / "models").iterdir() if one.name.startswith(".partial")] == []


@pytest.mark.parametrize("change", ["config", "weights", "another version", "a file", "a link", "an empty folder"])
def test_what_others_wrote_or_changed_is_left_alone(tiny: Bundle, tmp_path: Path, change: str) -> None:
    models = tmp_path / "models"
    place = models / "tiny"
    if change == "an empty folder":
        place.mkdir(parents=True)
    else:
        write_repository(tiny, models)
    if change == "config":
        with (place / "config.pbtxt").open("a") as file:
            file.write("# mine\n")
    elif change == "weights":
        overwrite(place / "1" / "model.onnx", b"other")
    elif change == "another version":
        (place / "2").mkdir()
        (place / "2" / "model.onnx").write_bytes(b"mine")
    elif change == "a file":
        place.rename(models / "was")
        place.write_text("mine")
    elif change == "a link":
        place.rename(models / "was")
        place.symlink_to(models / "was")
    held = {one: one.read_bytes() for one in models.rglob("*") if one.is_file()}
    with pytest.raises(UsageError, match="left alone"):
        write_repository(tiny, models, TritonOptions(threads=2))
    assert {one: one.read_bytes() for one in models.rglob("*") if one.is_file()} == held


@pytest.mark.parametrize("when", ["before", "between"])
def test_an_altered_model_is_not_published(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    path = tiny.path(tiny.variant().graph)
    spoilt = path.read_bytes()[:-1] + b"x"
    if when == "before":
        overwrite(path, spoilt)
    else:  # after it was checked, and before it was copied
        check = files.check_room
        monkeypatch.setattr(files, "check_room", lambda *a, **k: (check(*a, **k), overwrite(path, spoilt)))
    with pytest.raises(BundleInvalid, match="was altered"):
        write_repository(tiny, tmp_path / "models")
    assert not list((tmp_path / "models").rglob("*"))


def test_a_failure_keeps_what_was_there(tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = write_repository(tiny, tmp_path / "models")
    text = (done.folder / "config.pbtxt").read_text()
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if Path(target) == done.folder and (self / "config.pbtxt").read_text() != text:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(Exception, match="No space left"):
        write_repository(tiny, tmp_path / "models", TritonOptions(threads=2))
    assert (done.folder / "config.pbtxt").read_text() == text
    assert [one.name for one in (tmp_path / "models").iterdir() if one.name.startswith(".partial")] == []


def test_a_name_that_would_leave_the_repository_is_refused(tiny: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no bundle name"):
        write_repository(tiny, tmp_path / "models", TritonOptions(name="../elsewhere"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("tiny --triton models --precision int8", "--precision changes nothing with --triton"),
        ("tiny --triton models --data x.npz", "--data changes nothing with --triton"),
        ("tiny --triton models --data-dir .", "--data-dir changes nothing with --triton"),
        ("tiny --triton models --out x", "--out changes nothing with --triton"),
        ("tiny --triton models --batch-size 4", "--batch-size changes nothing with --triton"),
        ("tiny --variant fp32", "--variant changes nothing without --triton"),
        ("tiny --provider cuda", "--provider changes nothing without --triton"),
        ("tiny --max-batch-size 4", "--max-batch-size changes nothing without --triton"),
    ],
)
def test_flags_that_would_change_nothing_are_refused(tiny: Bundle, kit_inside: Kit, arguments: str, words: str) -> None:
    assert tiny.name == "tiny"
    found = kit_inside("export", *shlex.split(arguments))
    assert (found.returncode, words in found.stderr) == (2, True), found.stderr


def test_the_command_prints_the_folder_or_json(tiny: Bundle, kit_inside: Kit, tmp_path: Path) -> None:
    found = kit_inside("export", "--triton", "models", "tiny", "--threads", "2", "--name", "model-2")
    assert (found.returncode, found.stdout) == (0, f"{Path('models') / 'model-2'}\n"), found.stderr
    assert read(Repository(folder=tmp_path / "models" / "model-2", **_REST)).name == "model-2"
    found = kit_inside("export", "--triton", "models", str(tiny.folder), "--json")
    assert json.loads(found.stdout)["max_batch_size"] == MOST_ROWS


_REST: dict[str, Any] = {"variant": "", "max_batch_size": 0, "is_new": True, "remarks": ()}


def test_it_needs_neither_torch_nor_onnx(tiny: Bundle, python: Kit) -> None:
    found = python(
        BLOCK.format(blocked=WORKSHOP)
        + f"""
from pathlib import Path
from exporters.triton import write_repository
from kit import ready
print(write_repository(ready.find({os.fspath(tiny.folder)!r}), Path("models")).folder)
"""
    )
    assert found.stdout.strip() == str(Path("models") / "tiny"), found.stderr
