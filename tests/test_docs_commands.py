"""The commands that the pages print: each is one that kit has, and those that a small machine can run are run."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from PIL import Image

from apps.cli import cli
from kit.bundle import find
from tests import graphs
from tests.conftest import ROOT, Kit

PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", *sorted(f"docs/{page.name}" for page in ROOT.glob("docs/*.md")))
BLOCK = re.compile(r"```(?:console|sh|yaml)\n(.*?)```", re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?(?:uv run )?kit (\w.*)$")
QUICK = {"tune": ("--budget", "5s")}
"""What is added to a command so that it takes seconds."""

ELSEWHERE = {
    "train": "tests/test_training_runs.py trains, and a recipe takes minutes",
    "demo": "tests/test_demo.py opens it",
    "serve": "tests/test_serve.py and test_ray.py ask it",
    "compress": "tests/test_compress.py, and it takes minutes",
    "report": "tests/test_report.py",
    "compare": "tests/test_compare.py",
}
MADE = {
    "README.md": ("artifacts/model/manifest.json",),
    "docs/phones.md": ("phone",),
    "docs/scaling.md": ("answers.parquet", "answers.jsonl"),
    "docs/serving.md": ("models",),
    "docs/web.md": ("site/index.html",),
}
"""What a page's commands leave behind."""

NEEDS = {
    "--provider cuda": "a GPU",
    "--ray": "a cluster",
    "--serve": "somebody who ends it",
    "my_package.models:build": "a package of one's own",
    "MiniLM": "a model of others",
    "my-flowers-mlp": "pictures of one's own",
    "my-mnist-mlp": "a bundle that was trained for minutes",
    "classifier.onnx": "a model of one's own",
    "sentiment": "a model of one's own",
    "export scores": "a model of one's own",
    "models/my-model": "a model of one's own",
    "BUNDLE": "a bundle of one's own",
    "--axis sequence": "a model that reads sequences",
}


def printed() -> list[tuple[str, str]]:
    """Every command of every page, without its comment and its continuation."""
    return [
        (page, re.sub(r"\s+#.*$", "", command[1]).strip())
        for page in PAGES
        for block in BLOCK.findall((ROOT / page).read_text())
        for line in block.replace("\\\n", " ").splitlines()
        if (command := COMMAND.match(line.strip()))
    ]


def why_not(command: str) -> str:
    """Why a command is not run below; empty if it is."""
    needs = [what for words, what in NEEDS.items() if words in command]
    return needs[0] if needs else ELSEWHERE.get(command.split(maxsplit=1)[0], "")


def test_there_are_commands_to_look_at() -> None:
    assert len(printed()) > 40


@pytest.mark.parametrize(("page", "command"), printed())
def test_every_command_that_is_printed_is_one_that_kit_has(page: str, command: str) -> None:
    name, *arguments = shlex.split(command)
    assert name in cli.commands, page
    chosen = cli.commands[name]
    with click.Context(chosen, info_name=name, resilient_parsing=True) as context:
        chosen.make_parser(context).parse_args(arguments)  # UsageError for an option that is not there


def runnable() -> dict[str, list[str]]:
    """The commands of each page that are run here, in their order."""
    pages: dict[str, list[str]] = {}
    for page, command in printed():
        if not why_not(command):
            pages.setdefault(page, []).append(command)
    return pages


@pytest.mark.slow
@pytest.mark.parametrize("page", runnable())
def test_what_a_page_prints_runs_as_printed(page: str, kit_inside: Kit, tmp_path: Path) -> None:
    _prepare(tmp_path)
    for command in runnable()[page]:
        packed = next((one.name for one in tmp_path.glob("mnist-mlp-*.kit")), "")  # what it prints is named by its hash
        line = [packed if word.startswith("mnist-mlp-1a2b3c4d") else word for word in shlex.split(command)]
        done = kit_inside(*line, *QUICK.get(line[0], ()))
        assert done.returncode == 0, (command, done.stderr)
    for made in MADE.get(page, ()):
        assert (tmp_path / made).exists(), made


def _prepare(folder: Path) -> None:
    """Put there what the pages take for granted: a model with samples, pictures, and a bundle of one's own."""
    model = graphs.pixels()
    onnx.save(model, folder / "model.onnx")
    shape = [dim.dim_value or 40 for dim in model.graph.input[0].type.tensor_type.shape.dim]
    rows = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    np.savez(folder / "samples.npz", **{model.graph.input[0].name: rows})
    pixels = find("mnist-mlp").golden()[0].inputs["pixels"]
    (folder / "scans").mkdir()
    for place in range(3):
        Image.fromarray(255 - pixels[place]).resize((200, 200)).save(folder / "scans" / f"{place}.png")
    shutil.copyfile(folder / "scans" / "0.png", folder / "photo.jpg")
    shutil.copyfile(folder / "scans" / "0.png", folder / "photo.png")
    shutil.copytree(find("mnist-mlp").folder, folder / "artifacts" / "my-model")
