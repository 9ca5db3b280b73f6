"""What a shell completes, `python -m kit`, and what kit lists wherever one is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from apps.cli import cli
from apps.cli.completion import SHELLS
from kit.bundle import Bundle, find
from kit.lab.training import recipe
from tests.conftest import ROOT, Kit

PROGRAM = [sys.executable, "-c", "import apps.cli; apps.cli.main()"]


@pytest.fixture
def here(digits: Bundle, tmp_path: Path) -> Path:
    """A folder with a bundle under ./artifacts, and some files."""
    (tmp_path / "artifacts").mkdir()
    digits.folder.rename(tmp_path / "artifacts" / "my-digits")
    (tmp_path / "model.onnx").write_bytes(b"")
    (tmp_path / "more").mkdir()
    return tmp_path


def offered(here: Path, words: str) -> list[str]:
    """What is offered for the last word of a line, as bash asks for it."""
    line = words.split(" ")
    environment = {"_KIT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(line) - 1)}
    done = subprocess.run(
        PROGRAM, cwd=here, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    return [line for line in done.stdout.split("\n") if line]


@pytest.mark.slow
def test_bundles_and_files_are_offered(here: Path) -> None:
    for command in ("info", "bench", "verify", "predict", "export", "serve", "doctor", "web"):
        assert offered(here, f"kit {command} my") == ["plain,my-digits"], command
    assert offered(here, "kit info m") == ["plain,mnist-mlp", "plain,my-digits", "plain,model.onnx", "plain,more/"]
    assert offered(here, "kit info other") == ["file,other"]


def test_the_variants_offered_are_those_of_the_bundle(here: Path) -> None:
    every = ["plain,fp32", "plain,int8-qdq", "plain,int8-dynamic"]
    assert offered(here, "kit bench my-digits --variant ") == every
    assert offered(here, "kit predict my-digits --variant int8") == every[1:]
    assert "plain,int8-pixel" in offered(here, "kit bench --variant ")
    assert offered(here, "kit bench no-such-bundle --variant ") == offered(here, "kit bench --variant ")


def test_runtimes_data_sets_metrics_and_tasks_are_offered(here: Path) -> None:
    assert {"plain,onnxruntime", "plain,openvino", "plain,all"} <= set(offered(here, "kit bench --runtime "))
    assert offered(here, "kit train --dataset fash") == ["plain,fashion-mnist"]
    assert "plain,digits" in offered(here, "kit export --data di")
    assert offered(here, "kit export --metric top") == ["plain,top-1"]
    assert "plain,image-classification" in offered(here, "kit export --task image")
    assert offered(here, "kit bench --provider c") == ["plain,cpu", "plain,cuda"]
    assert offered(here, "kit report here.js") == ["file,here.js"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_of_every_shell_is_one_that_it_reads(here: Path, shell: str) -> None:
    script = subprocess.run([*PROGRAM, "completion", shell], cwd=here, capture_output=True, text=True, check=True)
    assert "_KIT_COMPLETE" in script.stdout
    if program := shutil.which(shell):
        subprocess.run([program, "-n"], input=script.stdout, text=True, check=True)


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_itself_completes_a_bundle(here: Path) -> None:
    program = str(Path(sys.executable).parent)
    lines = (
        'eval "$(kit completion bash)"; COMP_WORDS=(kit info my); COMP_CWORD=2; _kit_completion kit; '
        'printf "%s " "${COMPREPLY[@]}"'
    )
    environment = {**os.environ, "PATH": f"{program}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", lines], cwd=here, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["my-digits"]


@pytest.mark.skipif(not shutil.which("fish"), reason="fish is not installed")
def test_fish_itself_completes_a_bundle(here: Path) -> None:
    program = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{program}{os.pathsep}{os.environ['PATH']}"}
    lines = 'kit completion fish | source; complete -C "kit info my"'
    asked = ["fish", "--no-config", "-c", lines]
    done = subprocess.run(asked, cwd=here, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["my-digits"]


def test_python_runs_kit_as_a_module(tmp_path: Path) -> None:
    def ran(*line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *line], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert ran("-m", "kit", "--version").stdout.startswith("kit, version")
    assert ran("-m", "kit", "info", "nothing").returncode == 4


def test_what_came_with_kit_is_listed_and_named_from_everywhere(kit_inside: Kit, tmp_path: Path) -> None:
    (row,) = json.loads(kit_inside("list", "--json").stdout)
    assert (row["name"], row["came_with_kit"]) == ("mnist-mlp", True)
    assert "came with kit" in kit_inside("list").stdout
    assert "bundles here: mnist-mlp" in kit_inside("predict", "nothing.png").stderr
    assert "bundles here: mnist-mlp" in kit_inside("info", "nothing").stderr
    own = Path(shutil.copytree(ROOT / "artifacts" / "mnist-mlp", tmp_path / "artifacts" / "mnist-mlp"))
    (row,) = json.loads(kit_inside("list", "--json").stdout)
    assert (row["folder"], row["came_with_kit"]) == ("artifacts/mnist-mlp", False)
    assert find("mnist-mlp").folder.resolve() == own.resolve()


def test_no_line_of_help_is_wider_than_a_terminal() -> None:
    for name in cli.list_commands(click.Context(cli)):
        above = click.Context(cli, info_name="kit", terminal_width=80, **cli.context_settings)
        with cli.commands[name].make_context(
            name, [], parent=above, resilient_parsing=True, terminal_width=80
        ) as context:
            wide = [line for line in cli.commands[name].get_help(context).splitlines() if len(line) > 80]
        assert not wide, name


def test_the_default_that_train_names_is_the_one_it_takes() -> None:
    (out,) = (one for one in cli.commands["train"].params if one.name == "out")
    assert isinstance(out, click.Option)
    assert out.help is not None
    for model, name in ((recipe.Recipe.model, "my-DATASET-mlp"), ("MODEL", "my-DATASET-MODEL")):
        assert recipe.bundle_name(dataset="DATASET", model=model) == name
        assert name in out.help
