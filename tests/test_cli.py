"""The command line: help, exit codes, one clear message, nothing half-written."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from apps.cli import cli
from apps.cli.train import DATASETS, MODELS
from exporters.compress import CompressOptions
from exporters.options import AUTO, DEFAULT_CALIBRATION_SAMPLES, DEFAULT_OPSET, OPSETS, STATIC_FORMATS, ExportOptions
from kit import tuning
from kit.bundle import Bundle, find
from kit.choices import Precision
from kit.lab import data, models
from tests.conftest import ROOT, Kit
from tests.helpers.idx import write_idx

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
    assert f"[default: {ExportOptions().allowed_drop_points:g}]" in options["max_drop"].help
    assert f"[default: {DEFAULT_CALIBRATION_SAMPLES}]" in options["calibration_size"].help
    assert set(options["precisions"].type.choices) == {*Precision, AUTO}
    assert set(options["formats"].type.choices) == set(STATIC_FORMATS)
    tune = {parameter.name: parameter for parameter in cli.commands["tune"].params}
    assert tune["max_drop"].default == tuning.DEFAULT_MAX_DROP_POINTS
    compress = {parameter.name: parameter for parameter in cli.commands["compress"].params}
    for name, field in (("max_drop", "max_drop_points"), ("epochs", "epochs"), ("target_speedup", "target_speedup")):
        assert compress[name].default == getattr(CompressOptions(), field)
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
        (("predict", "missing.png"), 4, "no picture, folder or bundle"),
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
    assert json.loads(good.stdout)["ok"] is True
    path = digits.path(digits.variant().artifact)
    path.write_bytes(b"\0" * path.stat().st_size)
    bad = kit_inside("verify", str(digits.folder))
    assert bad.returncode == 1
    assert "altered" in bad.stdout


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


@pytest.fixture
def pictures(digits: Bundle, tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    golden = digits.golden()
    for number in range(3):
        image = Image.fromarray(golden.pixels[number]).resize((200, 160))
        image.save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("form", ["json", "jsonl", "csv"])
def test_predict_answers_a_folder_in_every_form(kit_inside: Kit, digits: Bundle, pictures: Path, form: str) -> None:
    found = kit_inside("predict", str(digits.folder), str(pictures), f"--{form}")
    assert found.returncode == 0, found.stderr
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(found.stdout)))
        shares = [float(rows[0][f"p({label})"]) for label in digits.spec.labels]
    else:
        rows = json.loads(found.stdout) if form == "json" else [json.loads(line) for line in found.stdout.splitlines()]
        shares = list(rows[0]["probabilities"].values())
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert rows[0]["label"] == digits.spec.labels[int(np.argmax(shares))]


def test_predict_answers_what_it_can_and_reports_the_rest(kit_inside: Kit, digits: Bundle, pictures: Path) -> None:
    (pictures / "broken.png").write_text("no picture")
    found = kit_inside("predict", str(digits.folder), str(pictures), "--jsonl")
    assert found.returncode == 4
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert ["error" in row for row in rows] == [False, False, False, True]
    assert "broken.png" in found.stderr


def test_predict_reads_stdin(digits: Bundle, pictures: Path) -> None:
    found = subprocess.run(
        [str(Path(sys.executable).with_name("kit")), "predict", str(digits.folder), "-"],
        input=(pictures / "0.png").read_bytes(),
        capture_output=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert b"%" in found.stdout


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
    for words in ("uint8 [batch, 28, 28]", "float32 [batch, 10]", "mnist-ink@2", "int8-qdq", "onnxruntime 1.18+"):
        assert words in found.stdout


def test_doctor_proves_the_cpu(kit_inside: Kit) -> None:
    found = kit_inside("doctor", "--json")
    assert found.returncode == 0
    report = json.loads(found.stdout)
    assert next(row for row in report["providers"] if row["provider"] == "cpu")["works"] is True
    assert report["runtime"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell's background jobs ignore Ctrl-C and pass that on: without this, what a test starts would run forever."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_in_training_keeps_the_best_and_exits_130(tmp_path: Path) -> None:
    line = [str(Path(sys.executable).with_name("kit")), "train", "--dataset", "digits", "--epochs", "100000"]
    with subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for text in process.stderr:
            if "epoch   2/" in text:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130, rest
    assert "Interrupted: kept epoch" in rest
    record = find(tmp_path / "artifacts" / "my-digits-mlp").manifest.training
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
    assert "resize@1" in shown.stdout
    assert kit_inside("verify", "my-fashion-mnist-mlp-64-64").returncode == 0
    line = ("bench", "my-fashion-mnist-mlp-64-64", "--provider", "cpu", "--budget", "300ms", "--batch-size", "1")
    assert "fashion-mnist test, 400 images; counted now" in kit_inside(*line, *here).stdout


@pytest.mark.parametrize(("typed", "code"), [("2GB", 3), ("512MiB", 3), ("10", 2), ("much", 2)])
def test_a_limit_of_gpu_memory_is_typed_with_its_unit(kit: Kit, tiny: Bundle, typed: str, code: int) -> None:
    found = kit("bench", str(tiny.folder), "--provider", "cuda", "--gpu-memory-limit", typed)
    assert found.returncode in ({0, 3} if code == 3 else {code}), found.stderr
