"""The terminal: words of files are text, whatever they hold, and a reader that goes away is no failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from apps.cli import PIPE_CLOSED, cli, run
from apps.cli.tables import literal
from kit.bundle import Bundle, open_folder
from kit.report.words import in_json, plain
from tests.conftest import Kit

EVIL = "[/] [red]\x1b[31m\u202e\x9b[conceal]"
HIDDEN = ("\x1b", "\u202e", "\x9b")
SPOILT = {"source", "dataset", "metric", "unit", "labels", "package", "remarks", "domains", "split"}


def spoilt(value: Any, name: str = "") -> Any:
    """A manifest with the words in every text that may be any."""
    if isinstance(value, dict):
        return {key: spoilt(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [spoilt(one, name) for one in value]
    return f"{value}{EVIL}" if isinstance(value, str) and name in SPOILT else value


def evil(bundle: Bundle) -> Bundle:
    """The bundle, its manifest full of what a terminal might obey."""
    path = bundle.folder / "manifest.json"
    manifest = spoilt(json.loads(path.read_text(encoding="utf-8")))
    manifest["tools"] = {f"torch{EVIL}": EVIL}
    manifest["original"] = {"kind": f"onnx{EVIL}", "name": EVIL}
    for variant in manifest["variants"]:
        variant["remarks"] = [EVIL]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return open_folder(bundle.folder)


def test_what_a_manifest_says_is_text_in_every_command(kit_inside: Kit, digits: Bundle) -> None:
    (digits.folder.parent / "artifacts").mkdir(exist_ok=True)
    folder = str(evil(digits).folder.rename(digits.folder.parent / "artifacts" / "evil"))
    quick = ("--batch-size", "1", "--budget", "300ms", "--provider", "cpu")
    said = {
        "list": kit_inside("list"),
        "list --json": kit_inside("list", "--json"),
        "info": kit_inside("info", folder),
        "info --json": kit_inside("info", folder, "--json"),
        "verify": kit_inside("verify", folder),
        "bench": kit_inside("bench", folder, *quick, "--json", "base.json"),
        "compare": kit_inside("compare", "base.json", "base.json"),
        "report": kit_inside("report", "base.json", "-o", "-", "--format", "markdown"),
    }
    for command, found in said.items():
        assert found.returncode != 5, (command, found.stderr)
        for character in HIDDEN:
            assert character not in found.stdout + found.stderr, command
    assert "[/] [red]\\x1b[31m\\u202e" in said["info"].stdout
    assert EVIL in json.loads(said["info --json"].stdout)["original"]["name"]


def test_invisible_characters_are_spelled_out() -> None:
    assert plain("fine: µ – é 漢") == "fine: µ – é 漢"  # noqa: RUF001
    assert plain("a\x1b\x07\r\n\u200b\ue000\ud800") == "a\\x1b\\x07\\r\\n\\u200b\\ue000\\ud800"
    assert plain("two\n\tlines\x9b", lines=True) == "two\n\tlines\\x9b"
    words = {"a\u202e": ["\x9b", "\U000e0001", "\n"]}
    shown = in_json(json.dumps(words, indent=1, ensure_ascii=False))
    assert not any(character in shown for character in ("\u202e", "\x9b", "\U000e0001"))
    assert json.loads(shown) == words


def test_only_text_has_styles() -> None:
    assert literal("[bold]x[/]").plain == "[bold]x[/]"
    assert literal(Text("x", style="bold")).style == "bold"


@pytest.mark.parametrize("arguments", [("--help",), ("list", "--json"), ("doctor",)])
def test_a_reader_that_goes_away_ends_a_command_quietly(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(
        [sys.executable, "-c", "import apps.cli; apps.cli.main()", *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        check=False,
    )
    os.close(writer)
    assert (found.returncode, found.stderr) == (PIPE_CLOSED, b"")


def test_memory_that_is_short_is_no_defect(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setattr(cli.commands["doctor"], "callback", lambda **_: fail())
    assert run(["doctor"]) == 3
    assert "not enough memory: Unable to allocate 9 TiB" in capsys.readouterr().err
