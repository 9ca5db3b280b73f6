"""The command line: help, exit codes, one clear message, nothing half-written."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from apps.cli import cli
from apps.cli.tables import Rows
from apps.cli.train import DATASETS, MODELS
from apps.cli.typed import AxisType, InputType, Labels
from exporters.compress import CompressOptions
from exporters.options import AUTO, DEFAULT_OPSET, OPSETS, STATIC_FORMATS
from kit import metrics
from kit.bundle import Bundle, find
from kit.choices import Precision
from kit.lab import data, models
from kit.lab.records import training_record
from kit.tasks import registry as tasks
from kit.tensors import Axis, TensorSpec
from tests.conftest import ROOT, Kit
from tests.helpers.bundles import overwrite
from tests.helpers.idx import write_idx
from tests.helpers.onnx_files import scores, strings

COMMANDS = sorted(cli.commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_debug(name: str) -> None:
    command = cli.commands[name]
    assert command.help is not None
    assert "Example" in command.help
    assert any("--debug" in parameter.opts for parameter in command.params)


def test_the_choices_offered_are_those_of_the_library() -> None:
    assert set(DATASETS) == set(data.DATASETS)
    assert MODELS == models.ARCHITECTURES
    options = {parameter.name: parameter for parameter in cli.commands["export"].params}
    assert f"[default: {100 * metrics.find('top-1').allowed_loss:g} for top-1]" in options["max_drop"].help
    assert all(name in options["metric"].help for name in metrics.names())
    assert all(name in options["task"].help for name in tasks.names() if name != tasks.PLAIN)
    assert set(options["precisions"].type.choices) == {*Precision, AUTO}
    assert set(options["formats"].type.choices) == set(STATIC_FORMATS)
    compress = {parameter.name: parameter for parameter in cli.commands["compress"].params}
    for name in ("epochs", "target_speedup"):
        assert compress[name].default == getattr(CompressOptions(), name)
    assert compress["max_drop"].default == 100 * CompressOptions().max_loss
    assert compress["batch_sizes"].default == CompressOptions().batch_sizes
    assert options["opset"].default == DEFAULT_OPSET
    assert (options["opset"].type.min, options["opset"].type.max) == (OPSETS[0], OPSETS[-1])


def test_the_help_pages_in_the_docs_are_those_of_the_commands() -> None:
    """Set KIT_UPDATE_DOCS=1 to write them anew."""
    page = ROOT / "docs" / "cli.md"
    parts = ["# The commands\n\nWritten from `kit COMMAND --help` by tests/test_cli.py.\n"]
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        above = click.Context(cli, info_name="kit", **cli.context_settings)
        with cli.commands[name].make_context(name, [], parent=above, resilient_parsing=True) as context:
            context.max_content_width = 100
            context.terminal_width = 100
            parts.append(f"\n## kit {name}\n\n```text\n{cli.commands[name].get_help(context)}\n```\n")
    text = "".join(parts)
    if os.environ.get("KIT_UPDATE_DOCS"):
        page.write_text(text)
    assert page.read_text() == text, "run the test with KIT_UPDATE_DOCS=1"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nonsense",), 2, "No such command"),
        (("bench", "--batch-size", "0"), 2, "batch-size"),
        (("export", "--quantization", "dynamic"), 2, "changes nothing"),
        (("export", "--max-drop", "1"), 2, "changes nothing"),
        (("export", "--max-loss", "1", "--max-drop", "1", "--precision", "int8"), 2, "leave one out"),
        (("export", "--out", "elsewhere"), 2, "--out changes nothing for a bundle"),
        (("export", "missing.onnx"), 4, "no bundle and no model 'missing.onnx'"),
        (("export", "missing.onnx", "--weights", "w.safetensors"), 2, "for a factory"),
        (("export", "missing.onnx", "--mean", "0.5"), 2, "without --task: image-classification"),
        (("export", "missing.onnx", "--task", "tensors", "--labels", "a,b"), 2, "nothing for the task tensors"),
        (("export", "missing.onnx", "--task", "divination"), 3, "no installed package knows the task"),
        (("export", "missing.onnx", "--axis", "sequence=9..3"), 2, "no axis such as sequence=1..512:16,128"),
        (("export", "missing.onnx", "--axis", "sequence=none"), 2, "only the batch axis can be none"),
        (("export", "m:f", "--input", "ids=int65[batch]"), 2, "cannot be int65"),
        (("export", "m:f", "--input", "ids"), 2, "no input such as ids=int64[batch,sequence]"),
        (("export", "m:f", "--precision", "auto"), 2, "is for a bundle"),
        (("export", "--metric", "no-metric"), 2, "unknown metric"),
        (("export", "missing.onnx", "--opset", "18"), 2, "--opset changes nothing for missing.onnx"),
        (("export", "missing.onnx", "--data-dir", "here"), 2, "--data-dir changes nothing without --data"),
        (("verify", "--tolerance", "0.1"), 2, "without --against"),
        (("upgrade", "missing"), 4, "no bundle 'missing'"),
        (("export", "--opset", "3"), 2, "opset"),
        (
            ("export", "--precision", "int8", "--batch-size", "8"),
            2,
            "--batch-size changes nothing without --precision auto",
        ),
        (("export", "--precision", "auto", "--format", "pixel"), 2, "--format changes nothing with --precision auto"),
        (("export", "--precision", "auto", "--precision", "int8"), 2, "leave the others out"),
        (("export", "--precision", "int4", "--per-tensor"), 2, "changes nothing without --precision int8"),
        (("export", "--precision", "fp16", "--calibration-size", "9"), 2, "changes nothing without --precision int8"),
        (("export", "--precision", "int8", "--format", "pixel", "--exclude-layer", "x"), 2, "--format qdq"),
        (("blame", "-o", "picture.bmp"), 2, ".png or .svg"),
        (("tune", "--show", "--goal", "latency"), 2, "--goal changes nothing with --show"),
        (("compress", "--target-speedup", "1"), 2, "target-speedup"),
        (("compress", "missing"), 4, "no bundle 'missing'"),
        (("verify", "missing"), 4, "no bundle 'missing'"),
        (("info", "missing"), 4, "kit quickstart"),
        (("predict", "missing.png"), 4, "no file, folder or bundle"),
        (("predict", "missing.png", "--json", "--csv"), 2, "exclude each other"),
        (("train", "--dataset", "mnist", "--data-dir", "empty"), 3, "--dataset digits"),
        (("train", "--dataset", "digits", "--val-fraction", "1"), 2, "val-fraction"),
        (("train", "--dataset", "digits", "--out", "bad name"), 2, "no bundle name"),
        (("train", "--dataset", "no/such/folder"), 2, "or a folder with a subfolder of images"),
    ],
)
def test_what_goes_wrong_is_one_message_and_the_right_exit_code(
    kit_inside: Kit, arguments: tuple[str, ...], code: int, words: str
) -> None:
    # A proxy that is not there stands for a machine without a network.
    offline = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    found = kit_inside(*arguments, **offline)
    assert found.returncode == code, found.stderr
    assert words in found.stderr
    assert "Traceback" not in found.stderr


def test_a_traceback_is_shown_when_asked_for(kit_inside: Kit) -> None:
    found = kit_inside("verify", "missing", "--debug")
    assert found.returncode == 4
    assert "Traceback" in found.stderr


def test_export_makes_variants_side_by_side(kit_inside: Kit, digits: Bundle) -> None:
    found = kit_inside("export", str(digits.folder), "--precision", "int8", "--quantization", "dynamic", "--json")
    assert found.returncode == 0, found.stderr
    published = json.loads(found.stdout)["published"]
    assert [one["variant"]["id"] for one in published] == ["fp32", "int8-dynamic"]
    assert "kit bench" in found.stderr
    assert {variant.id for variant in find(digits.folder).variants} == {"fp32", "int8-qdq", "int8-dynamic"}


def test_verify_prints_json_and_exits_1_for_a_bundle_that_was_altered(kit_inside: Kit, digits: Bundle) -> None:
    good = kit_inside("verify", str(digits.folder), "--json")
    assert good.returncode == 0
    found = json.loads(good.stdout)
    assert found["ok"] is True
    assert found["variants"][0]["fidelity"][0]["output"] == "logits"
    path = digits.path(digits.variant().graph)
    overwrite(path, b"\0" * path.stat().st_size)
    bad = kit_inside("verify", str(digits.folder))
    assert bad.returncode == 1
    assert "altered" in bad.stdout


def test_verify_says_what_the_task_says_of_the_golden_samples(kit_inside: Kit, digits: Bundle) -> None:
    found = kit_inside("verify", str(digits.folder))
    for words in ("top-1 (original)", "PASS", "answers here as it did then", "everything its manifest promises holds"):
        assert words in found.stdout + found.stderr


def test_infinite_errors_are_null_in_json(kit_inside: Kit, tmp_path: Path) -> None:
    scores(tmp_path / "wild.onnx", factor=np.inf)
    scores(tmp_path / "tame.onnx")
    found = kit_inside("verify", "wild.onnx", "--against", "tame.onnx", "--json")
    assert found.returncode == 1
    assert json.loads(found.stdout, parse_constant=pytest.fail)["fidelity"][0]["max_abs_error"] is None


def test_a_ready_model_is_shown_verified_and_compared_without_a_bundle(kit_inside: Kit, tmp_path: Path) -> None:
    scores(tmp_path / "scores.onnx")
    scores(tmp_path / "other.onnx", factor=1.5)
    shown = kit_inside("info", "scores.onnx")
    assert shown.returncode == 0, shown.stderr
    for words in ("ids: int64 [batch, sequence]", "scores: float32 [batch, 3]", "not known", "how right it is"):
        assert words in shown.stdout
    assert kit_inside("verify", "scores.onnx").returncode == 0
    assert "PASS" in kit_inside("verify", "scores.onnx", "--runtime", "all").stdout
    assert kit_inside("verify", "scores.onnx", "--against", "scores.onnx").returncode == 0
    apart = kit_inside("verify", "scores.onnx", "--against", "other.onnx")
    assert apart.returncode == 1
    assert "do NOT give the same" in apart.stdout
    np.savez(tmp_path / "silence.npz", ids=np.ones((2, 3), np.int64), mask=np.zeros((2, 3), np.int64))
    same = kit_inside("verify", "scores.onnx", "--against", "other.onnx", "--samples", "silence.npz")
    assert same.returncode == 0, same.stderr
    assert [item.name for item in tmp_path.iterdir() if not item.name.endswith((".onnx", ".npz"))] == []


def test_a_model_of_strings_is_refused_in_one_sentence(kit_inside: Kit, tmp_path: Path) -> None:
    strings(tmp_path / "strings.onnx")
    for command in ("info", "verify", "export"):
        found = kit_inside(command, "strings.onnx")
        assert found.returncode == 4, found.stderr
        assert "text is a tensor of string" in found.stderr
        assert "→" in found.stderr
    assert not (tmp_path / "artifacts").exists()


def test_export_makes_a_bundle_of_a_ready_model(kit_inside: Kit, tmp_path: Path) -> None:
    scores(tmp_path / "scores.onnx")
    made = kit_inside("export", "scores.onnx", "--axis", "sequence=1..64:4,16", "--json")
    assert made.returncode == 0, made.stderr
    (one,) = json.loads(made.stdout)["published"]
    assert one["fidelity"][0]["output"] == "scores"
    bundle = find(tmp_path / "artifacts" / "scores")
    assert bundle.manifest.original is not None
    assert bundle.manifest.original.kind == "onnx"
    assert (bundle.signature.axes["sequence"].most, bundle.signature.axes["sequence"].typical) == (64, (4, 16))
    assert kit_inside("verify", "scores").returncode == 0
    assert "ONNX Runtime" in kit_inside("verify", "scores").stdout


def test_export_of_a_model_whose_rows_depend_needs_no_batch(kit_inside: Kit, tmp_path: Path) -> None:
    scores(tmp_path / "scores.onnx", rows_depend=True)
    made = kit_inside("export", "scores.onnx", "--axis", "batch=none", "--out", "mine", "--name", "scores-of-all")
    assert made.returncode == 0, made.stderr
    bundle = find(tmp_path / "mine")
    assert bundle.signature.batch is None
    assert bundle.manifest.name == "scores-of-all"


def test_int8_of_a_ready_model_is_held_to_the_users_own_data_and_metric(
    kit_inside: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores(tmp_path / "scores.onnx")
    rng = np.random.default_rng(0)
    arrays = {"ids": rng.integers(0, 20, (300, 6)), "mask": np.ones((300, 6), np.int64)}
    np.savez(tmp_path / "rows.npz", **arrays, **{"target.labels": rng.integers(0, 3, 300)})
    (tmp_path / "mine.py").write_text(
        "def margin(outputs, samples):\n    return -abs(outputs['scores'] - samples.expected['scores']).max(axis=1)\n"
        "margin.needs_targets = False\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    line = ("export", "scores.onnx", "--data", "rows.npz", "--precision", "int8", "--quantization", "dynamic")
    assert kit_inside(*line, "--metric", "mine:margin", "--max-loss", "1e-9").returncode == 1
    assert not (tmp_path / "artifacts" / "scores" / "manifest.json").exists()
    made = kit_inside(*line, "--metric", "mine:margin", "--max-loss", "100")
    assert made.returncode == 0, made.stderr
    assert "mine:margin" in made.stdout
    line = ("export", "scores", *line[2:])
    assert "--metric top-1" in kit_inside(*line).stderr, "a regression's metric is not for labels"
    again = kit_inside(*line, "--metric", "top-1", "--max-drop", "100")
    assert "top-1 (higher is better): rows.npz test" in again.stdout, again.stderr


FACTORY = """
import torch

def build():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
"""


def test_a_factory_with_weights_becomes_a_bundle_that_reads_pictures(
    kit_inside: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_factory
    from safetensors.torch import save_file

    save_file(own_factory.build().state_dict(), str(tmp_path / "w.safetensors"))
    Image.fromarray(np.full((20, 30, 3), 200, np.uint8)).save(tmp_path / "bright.png")
    line = ("export", "own_factory:build", "--weights", "w.safetensors", "--input", "x=float32[batch,3,8,8]")
    about = ("--task", "image-classification", "--labels", "dark,bright", "--mean", "0.5,0.4,0.3", "--std", "0.2")
    made = kit_inside(*line, *about, "--name", "own", "--pipeline", "imagenet@1")
    assert made.returncode == 0, made.stderr
    bundle = find(tmp_path / "artifacts" / "own")
    assert bundle.signature.inputs[0].describe() == "uint8 [batch, 3, 8, 8]"
    checked = kit_inside("verify", "own")
    assert checked.returncode == 0, checked.stdout
    assert "raw items become the tensors they should" in checked.stdout
    (answer,) = json.loads(kit_inside("predict", "own", "bright.png", "--json").stdout)
    assert answer["label"] in {"dark", "bright"}
    assert "name a function that returns one" in kit_inside("export", "own_factory.py").stderr


def test_what_travels_of_the_users_data_is_said(kit_inside: Kit, tmp_path: Path) -> None:
    scores(tmp_path / "scores.onnx")
    np.savez(tmp_path / "rows.npz", ids=np.zeros((30, 6), np.int64), mask=np.ones((30, 6), np.int64))
    made = kit_inside("export", "scores.onnx", "--data", "rows.npz")
    assert "travel in the bundle" in made.stderr
    other = kit_inside("export", "scores.onnx", "--samples", "rows.npz")
    assert "travel in the bundle" not in other.stderr


NUMBERS = [
    (name, parameter.opts[0], parameter.type)
    for name in COMMANDS
    for parameter in cli.commands[name].params
    if isinstance(parameter.type, click.types.FloatParamType)
    or type(parameter.type).__name__ in {"_Share", "Duration", "Size", "Numbers"}
]


def test_no_number_of_the_command_line_may_be_none_or_endless() -> None:
    assert len(NUMBERS) > 10
    for command, flag, kind in NUMBERS:
        for text in ("nan", "inf", "9" * 400):
            with pytest.raises(click.BadParameter):
                pytest.fail(f"{command} {flag} takes {kind.convert(text, None, None)}")


def test_tables_break_no_word_in_a_narrow_terminal() -> None:
    rows = Rows(headers=("variant", "verdict", "why"), left=("variant", "verdict", "why"), wraps=("why",))
    rows.add("int8-qdq-per-channel", "FASTER", "it is so much quicker than the others")
    for width in (120, 80, *range(70, 10, -1)):
        out = io.StringIO()
        rows.show(Console(file=out, width=width, force_terminal=False))
        for word in ("int8-qdq-per-channel", "FASTER", "quicker", "others"):
            assert word in out.getvalue(), width


@pytest.mark.usefixtures("no_cuda")
def test_bench_on_cuda_that_is_not_there_says_why_and_exits_3(kit_inside: Kit, tiny: Bundle) -> None:
    found = kit_inside("bench", str(tiny.folder), "--provider", "cuda", "--batch-size", "1", "--json", "out.json")
    assert found.returncode == 3
    assert "CUDA cannot run here" in found.stdout
    assert "→" in found.stdout
    (row,) = json.loads((tiny.folder.parent / "out.json").read_text())["rows"]
    assert row["status"] == "unavailable"
    assert row["latency"] is None


@pytest.mark.usefixtures("no_cuda")
def test_an_allowed_fallback_is_marked_in_the_table(kit_inside: Kit, tiny: Bundle) -> None:
    found = kit_inside("bench", str(tiny.folder), "--provider", "cuda", "--batch-size", "1", "--allow-fallback")
    assert found.returncode == 0
    assert "FALLBACK" in found.stdout


def test_bench_keeps_its_results_beside_the_bundle(kit_inside: Kit, tiny: Bundle) -> None:
    found = kit_inside("bench", str(tiny.folder), "--provider", "cpu", "--batch-size", "2", "--json", "-")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == json.loads((tiny.folder.parent / "tiny.bench.json").read_text())
    assert [item.name for item in tiny.folder.iterdir() if item.name.endswith(".json")] == ["manifest.json"]


def test_bench_refuses_a_variant_that_is_not_there(kit_inside: Kit, tiny: Bundle) -> None:
    found = kit_inside("bench", str(tiny.folder), "--variant", "int4")
    assert found.returncode == 2
    assert "choose one of: fp32" in found.stderr


def labels_of(bundle: Bundle) -> list[str]:
    assert bundle.manifest.task is not None
    labels: list[str] = bundle.manifest.task.options["labels"]
    return labels


def test_list_shows_bundles_and_broken_ones(kit_inside: Kit, tiny: Bundle, tmp_path: Path) -> None:
    (tmp_path / "artifacts" / "broken").mkdir(parents=True)
    (tmp_path / "artifacts" / "broken" / "manifest.json").write_text("{")
    tiny.folder.rename(tmp_path / "artifacts" / "tiny")
    found = kit_inside("list", "--json")
    rows = {row["name"]: row for row in json.loads(found.stdout)}
    assert rows["tiny"]["variants"] == ["fp32"]
    assert "no JSON" in rows["broken"]["broken"]
    assert kit_inside("list").returncode == 0


def test_info_tells_a_stranger_what_the_model_takes_and_gives(kit_inside: Kit, digits: Bundle) -> None:
    found = kit_inside("info", str(digits.folder))
    words = (
        *("uint8 [batch, 28, 28]", "float32 [batch, 10]", "mnist-ink@3", "int8-qdq", "onnxruntime 1.18+"),
        *("image-classification@1", "top-1 (higher is better)", "architecture"),
    )
    for one in words:
        assert one in found.stdout


def test_info_of_several_tensors_names_axes_and_bounds(kit_inside: Kit, duo: Bundle) -> None:
    found = kit_inside("info", str(duo.folder))
    words = ("ids: int64 [batch, sequence], values below 11", "vectors: float32", "sequence: 1 to 64; usually 5, 16")
    for one in (*words, "tensors in, tensors out", "seeded noise", "how right it is"):
        assert one in found.stdout
    assert (
        json.loads(kit_inside("info", str(duo.folder), "--json").stdout)["signature"]["axes"]["sequence"]["most"] == 64
    )


def test_upgrade_rewrites_an_older_manifest_and_nothing_else(kit_inside: Kit, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ROOT / "tests" / "fixtures" / "manifest-2", tmp_path / "old"))
    before = {item.name: item.read_bytes() for item in folder.iterdir() if item.name != "manifest.json"}
    done = kit_inside("upgrade", "old")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "manifest.json").read_text())["schema_version"] == 3
    assert before.items() <= {item.name: item.read_bytes() for item in folder.iterdir()}.items()
    assert "newest manifest already" in kit_inside("upgrade", "old").stderr


def test_doctor_proves_the_cpu(kit_inside: Kit) -> None:
    found = kit_inside("doctor", "--json")
    assert found.returncode == 0
    report = json.loads(found.stdout)
    assert next(row for row in report["providers"] if row["provider"] == "cpu")["works"] is True
    assert report["runtime"]
    assert report["int8_saturates"] in {True, False}


def test_doctor_runs_a_ready_model(kit_inside: Kit, tmp_path: Path) -> None:
    scores(tmp_path / "scores.onnx")
    found = kit_inside("doctor", "scores.onnx")
    assert found.returncode == 0, found.stderr
    assert "runs" in found.stdout
    trials = json.loads(kit_inside("doctor", "scores.onnx", "--json").stdout)["model"]
    assert [one["works"] for one in trials if (one["runtime"], one["provider"]) == ("onnxruntime", "cpu")] == [True]


@pytest.mark.parametrize(
    ("text", "axis"),
    [
        ("sequence=1..512:16,128", Axis(least=1, most=512, typical=(16, 128))),
        ("sequence=16,128", Axis(typical=(16, 128))),
        ("height=32..", Axis(least=32)),
        ("height=32..1024*32:64", Axis(least=32, most=1024, multiple_of=32, typical=(64,))),
        ("batch=none", None),
    ],
)
def test_an_axis_is_typed_as_bounds_and_sizes(text: str, axis: Axis | None) -> None:
    assert AxisType().convert(text, None, None).axis == axis


def test_an_input_is_typed_as_dtype_and_shape() -> None:
    spec = InputType().convert("ids=int64[batch,sequence,3]", None, None)
    assert spec == TensorSpec(name="ids", dtype="int64", shape=("batch", "sequence", 3))
    assert InputType().convert("rate=float32[]", None, None).shape == ()


@pytest.mark.parametrize(
    ("name", "content"),
    [("labels.txt", "cat\ndog\n\n"), ("labels.json", '["cat", "dog"]'), ("map.json", '{"0": "cat", "1": "dog"}')],
)
def test_labels_are_typed_or_read_from_a_file(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert Labels().convert(str(tmp_path / name), None, None) == ("cat", "dog")
    assert Labels().convert("cat, dog", None, None) == ("cat", "dog")
    with pytest.raises(click.BadParameter, match="neither a file nor labels"):
        Labels().convert("nowhere.txt", None, None)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_training_keeps_the_best_and_exits_130(tmp_path: Path) -> None:
    line = [str(Path(sys.executable).with_name("kit")), "train", "--dataset", "digits", "--epochs", "100000"]
    line += ["--model", "mlp-64-64", "--threads", "1"]
    with subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for text in process.stderr:
            if "epoch   2/" in text:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert "Interrupted: kept epoch" in rest
    record = training_record(find(tmp_path / "artifacts" / "my-digits-mlp-64-64"))
    assert record is not None
    assert record.interrupted


def test_fashion_mnist_takes_the_same_path(kit_inside: Kit, tmp_path: Path) -> None:
    """Made-up garments in the real file format: bright for one class, dark for another."""
    rng = np.random.default_rng(0)
    for stem, count in (("train", 2000), ("t10k", 400)):
        labels = rng.integers(0, 10, count)
        images = np.clip(labels[:, None, None] * 25 + rng.integers(0, 30, (count, 28, 28)), 0, 255)
        raw = tmp_path / "FashionMNIST" / "raw"
        write_idx(raw / f"{stem}-images-idx3-ubyte", images, packed=True)
        write_idx(raw / f"{stem}-labels-idx1-ubyte", labels, packed=True)
    here = ("--data-dir", str(tmp_path))
    made = kit_inside("train", "--dataset", "fashion-mnist", "--model", "mlp-64-64", "--epochs", "12", *here)
    assert made.returncode == 0, made.stderr
    exported = kit_inside("export", "my-fashion-mnist-mlp-64-64", "--precision", "int8", "--max-drop", "5", *here)
    assert exported.returncode == 0, exported.stderr
    shown = kit_inside("info", "my-fashion-mnist-mlp-64-64")
    assert "Ankle boot" in shown.stdout
    assert "resize@2" in shown.stdout
    assert kit_inside("verify", "my-fashion-mnist-mlp-64-64").returncode == 0
    line = ("bench", "my-fashion-mnist-mlp-64-64", "--provider", "cpu", "--budget", "300ms", "--batch-size", "1")
    assert "fashion-mnist test, 400 samples; counted now" in kit_inside(*line, *here).stdout


@pytest.mark.parametrize(("typed", "code"), [("2GB", 3), ("512MiB", 3), ("10", 2), ("much", 2)])
def test_a_limit_of_gpu_memory_is_typed_with_its_unit(kit: Kit, tiny: Bundle, typed: str, code: int) -> None:
    found = kit("bench", str(tiny.folder), "--provider", "cuda", "--gpu-memory-limit", typed)
    assert found.returncode in ({0, 3} if code == 3 else {code}), found.stderr
