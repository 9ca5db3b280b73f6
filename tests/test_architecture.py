"""The house: imports point down, and a deployment machine never needs torch."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kit.bundle import Bundle
from tests.conftest import ROOT, Kit
from tests.helpers.blocked import BLOCK, WORKSHOP


def test_imports_point_down() -> None:
    found = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout


def test_no_test_module_imports_another() -> None:
    """What several need lies in tests/helpers."""
    for path in (ROOT / "tests").glob("test_*.py"):
        others = [line for line in path.read_text().splitlines() if re.match(r"\s*from tests\.test_", line)]
        assert all(f"tests.{path.stem} " in line for line in others), path.name


def test_import_kit_imports_no_runtime_and_no_torch(python: Kit) -> None:
    found = python("import kit, sys; print([m for m in ('torch', 'onnx', 'onnxruntime', 'numpy') if m in sys.modules])")
    assert found.stdout.strip() == "[]", found.stderr


def test_a_first_answer_waits_for_nothing_that_it_does_not_need(digits: Bundle, python: Kit) -> None:
    """Each of these takes milliseconds to import, of the 150 that a first answer takes in all."""
    later = (
        "importlib.metadata",
        "kit.bundle.write",
        "kit.bundle.packing",
        "kit.metrics.built_in",
        "kit.runtime.probing",
    )
    program = (
        f"import kit, numpy, sys; kit.load({str(digits.folder)!r}).predict(numpy.zeros((28, 28), numpy.uint8)); "
        f"print([name for name in {later!r} if name in sys.modules])"
    )
    found = python(program)
    assert found.stdout.strip() == "[]", found.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("list",),
        ("info",),
        ("verify",),
        ("doctor",),
        ("predict", "PICTURE"),
        pytest.param(("bench", "--batch-size", "1"), marks=pytest.mark.slow),
        ("pack",),
    ],
)
def test_deployment_commands_run_without_the_workshop(digits: Bundle, python: Kit, arguments: tuple[str, ...]) -> None:
    picture = digits.folder / "picture.png"
    from PIL import Image

    Image.fromarray(digits.golden()[0].inputs["pixels"][0]).save(picture)
    named = [str(picture) if word == "PICTURE" else word for word in arguments]
    if named[0] in {"info", "verify", "predict", "bench", "pack"}:
        named.insert(1, str(digits.folder))
    program = BLOCK.format(blocked=WORKSHOP) + f"from apps.cli import run; raise SystemExit(run({named!r}))"
    found = python(program)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_bundle_is_upgraded_where_nothing_can_be_exported(digits: Bundle, python: Kit, tmp_path: Path) -> None:
    shutil.copytree(digits.folder, tmp_path / "bundle")
    program = "import sys; sys.modules['filelock'] = None; "
    found = python(
        BLOCK.format(blocked=WORKSHOP)
        + program
        + f"from apps.cli import run; raise SystemExit(run({['upgrade', str(tmp_path / 'bundle')]!r}))"
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("blocked", "arguments"),
    [
        pytest.param(("torch",), ("export", "BUNDLE"), marks=pytest.mark.slow),
        pytest.param(("torch",), ("train", "--dataset", "digits"), marks=pytest.mark.slow),
        (("onnxruntime",), ("bench", "BUNDLE")),
        pytest.param(("onnxruntime",), ("verify", "BUNDLE"), marks=pytest.mark.slow),
        (("onnxruntime",), ("doctor",)),
        pytest.param(("sklearn",), ("train", "--dataset", "digits"), marks=pytest.mark.slow),
    ],
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    digits: Bundle, python: Kit, blocked: tuple[str, ...], arguments: tuple[str, ...]
) -> None:
    named = [str(digits.folder) if word == "BUNDLE" else word for word in arguments]
    found = python(BLOCK.format(blocked=blocked) + f"from apps.cli import run; raise SystemExit(run({named!r}))")
    assert found.returncode == 3, found.stdout + found.stderr
    assert "pip install" in found.stdout + found.stderr


def test_a_bundle_of_plain_tensors_needs_neither_pillow_nor_tokenizers_nor_the_lab(duo: Bundle, python: Kit) -> None:
    blocked = (*WORKSHOP, "PIL", "tokenizers", "pandas")
    program = (
        BLOCK.format(blocked=blocked)
        + "sys.modules['kit.lab'] = None\n"
        + f"import kit, numpy; from kit.verify import verify; bundle = kit.find({str(duo.folder)!r}); "
        + "assert verify(bundle).ok; inputs = bundle.golden()[0].inputs; "
        + "print(sorted(kit.load(bundle.folder).run(inputs)), 'torch' in sys.modules)"
    )
    found = python(program)
    assert found.stdout.strip() == "['scores', 'vectors'] False", found.stderr


def test_python_api_predicts_without_the_workshop(digits: Bundle, python: Kit) -> None:
    program = (
        BLOCK.format(blocked=WORKSHOP)
        + f"import kit, numpy; e = kit.load({str(digits.folder)!r}); "
        + "print(e.predict(numpy.zeros((2, 28, 28), numpy.uint8)).probabilities.shape)"
    )
    assert python(program).stdout.strip() == "(2, 10)"


def test_a_folder_named_apps_does_not_stand_in_for_ours(kit: Kit, tmp_path: Path) -> None:
    for name in ("apps", "kit", "exporters"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the wrong one')")
    assert kit("--help", cwd=tmp_path).returncode == 0
