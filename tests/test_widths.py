"""What people see in terminals of 80 and 120 columns: nothing is broken or cut, and progress leaves nothing behind."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from apps.cli.lines import wrapped
from apps.cli.tables import Rows, breakable
from kit.bundle import Bundle
from kit.report.format import size
from kit.system.wording import counted, times
from tests.conftest import ROOT

if sys.platform == "win32":
    pytest.skip("there are no pseudo-terminals", allow_module_level=True)

from tests.helpers.terminal import seen

WIDTHS = [80, 120]
BAR = re.compile(r"[━╸╺\u2800-\u28ff]")
VARIANT, BUNDLE = "int8-qdq-per-channel", "my-mnist-mlp-512-256-128"
WORD, FIGURES = "INCONCLUSIVE", "1.01x [0.99, 1.03]"


def table() -> Rows:
    rows = Rows(
        headers=("variant", "bundle", "p50 µs", "p90 µs", "size", "against fp32"),
        left=("variant", "bundle", "against fp32"),
        spare=("size", "p90 µs"),
        needed=("p50 µs",),
    )
    rows.add(VARIANT, BUNDLE, "1,234", "2,345", "1.23 MB", breakable(WORD, FIGURES), style="yellow")
    rows.add("fp32", BUNDLE, "12.3", "14.5", "2.34 MB", "baseline")
    return rows


def printed(rows: Rows, width: int) -> list[str]:
    out = io.StringIO()
    rows.show(Console(file=out, width=width, force_terminal=True, color_system=None))
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("width", [*range(45, 130, 7), *WIDTHS])
def test_a_table_of_any_width_breaks_and_cuts_nothing(width: int) -> None:
    lines = printed(table(), width)
    text = "\n".join(lines)
    for word in (VARIANT, BUNDLE, WORD, *FIGURES.split()):
        assert word in text
    assert max(map(len, lines)) <= max(width, len(BUNDLE) + 2)


def test_columns_that_can_be_spared_go_first_and_are_named() -> None:
    assert "size" in printed(table(), 120)[1]
    narrower = printed(table(), 105)
    assert "size" not in narrower[1]
    assert "p90 µs" in narrower[1]
    assert narrower[-1] == "For want of room without: size."
    assert f"{WORD} {FIGURES}" in "\n".join(narrower)
    broken = "\n".join(printed(table(), 85))
    assert f"{WORD} {FIGURES}" not in broken
    assert FIGURES in broken


def test_lines_are_broken_between_words_alone() -> None:
    lines = wrapped(Text("a sentence with artifacts/a-very-long-name-of-a-bundle in it"), 20, indent=2)
    assert [line.plain for line in lines] == ["a sentence with", "artifacts/a-very-long-name-of-a-bundle", "in it"]


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "command",
    [
        ("list",),
        ("info", "digits-mlp"),
        ("verify", "digits-mlp"),
        ("bench", "digits-mlp", "--provider", "cpu", "--budget", "2s"),
        ("bench", "digits-mlp", "--provider", "cpu", "--cold", "--budget", "2s", "--variant", "fp32"),
    ],
)
def test_no_word_of_a_command_is_broken_at_the_edge(digits: Bundle, columns: int, command: tuple[str, ...]) -> None:
    artifacts = digits.folder.parent / "artifacts"
    artifacts.mkdir()
    digits.folder.rename(artifacts / "digits-mlp")
    shown = seen(command, cwd=artifacts.parent, columns=columns)
    assert shown.code == 0, shown.text
    assert max(map(len, shown.lines)) <= columns, shown.text
    assert not BAR.search(shown.text)
    names = ("fp32",) if "--cold" in command else ("fp32", "int8-qdq", "int8-dynamic")
    assert all(name in shown.text for name in names), shown.text


def test_what_goes_into_a_pipe_is_not_folded(digits: Bundle, tmp_path: Path) -> None:
    shown = seen(("info", str(digits.folder)), cwd=tmp_path, columns=40, pipes_stdout=True)
    assert re.search(r"^made with +.{60,}", shown.stdout, flags=re.MULTILINE), shown.stdout
    assert "For want of room" not in shown.stdout


TRAIN = ("train", "--dataset", "digits", "--model", "mlp-64-64", "--epochs", "3", "--threads", "1")


@pytest.mark.slow
@pytest.mark.parametrize("columns", WIDTHS)
def test_training_leaves_a_line_for_each_epoch_and_no_bar(tmp_path: Path, columns: int) -> None:
    shown = seen(TRAIN, cwd=tmp_path, columns=columns)
    assert shown.code == 0, shown.text
    assert [int(number) for number in re.findall(r"^epoch +(\d+)/3 ", shown.text, flags=re.MULTILINE)] == [1, 2, 3]
    assert not BAR.search(shown.text), shown.text
    assert BAR.search(shown.raw), "a bar was there meanwhile"
    assert "\n\n\n" not in shown.text


@pytest.mark.slow
def test_progress_shows_nothing_where_stderr_is_no_terminal(tmp_path: Path) -> None:
    line = [sys.executable, "-c", "import apps.cli; apps.cli.main()", *TRAIN]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, check=True)
    assert b"\x1b" not in done.stderr
    assert b"\r" not in done.stderr
    assert b"\n\n\n" not in done.stderr


@pytest.mark.parametrize("columns", WIDTHS)
def test_the_summaries_of_the_commands_are_whole(tmp_path: Path, columns: int) -> None:
    shown = seen(("--help",), cwd=tmp_path, columns=columns)
    assert "..." not in shown.text.partition("\n")[2]
    assert "original's stored answers." in re.sub(r"\s+", " ", shown.text)


def test_numbers_and_their_nouns_agree() -> None:
    assert [counted(number, "thread") for number in (0, 1, 2)] == ["0 threads", "1 thread", "2 threads"]
    assert counted(1024, "process", "processes") == "1,024 processes"
    assert (times(1.744), times(0.6, 0.55, 0.651)) == ("1.74x", "0.60x [0.55, 0.65]")
    assert [size(number) for number in (12, 1200, 2_270_000, 1_300_000_000)] == ["12 B", "1 kB", "2.27 MB", "1.30 GB"]


def test_no_message_leaves_open_whether_it_is_one_or_several() -> None:
    files = (path for folder in ("apps", "kit", "exporters") for path in (ROOT / folder).rglob("*.py"))
    assert not [path for path in files if re.search(r"\{[^{}]*\} ?\w+\(e?s\)", path.read_text(encoding="utf-8"))]
