"""`kit predict` without a file: the first answer at once, all cores for many pictures, and whatever ends it leaves no mess."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnx
import psutil
import pytest

from kit.bulk import stream
from kit.bulk.answering import Opening
from kit.bulk.stream import Helpers
from kit.bundle import Bundle
from kit.engine import load
from kit.errors import BundleInvalid
from kit.system.machine import this_machine
from tests import graphs
from tests.conftest import SCANS, Kit

LINE = [sys.executable, "-c", "import apps.cli; apps.cli.main()", "predict"]


def told(answer: stream.Answer) -> tuple[str, Any]:
    if answer.prediction is None:
        return answer.name, str(answer.problem)
    return answer.name, answer.prediction.records()


def test_helpers_give_the_answers_that_one_process_gives_in_their_order(tiny: Bundle, scans: Path) -> None:
    with load(tiny.folder) as engine:
        alone = [told(answer) for answer in stream.answers(engine, engine.task.read(str(scans)))]
        helpers = Helpers(opening=Opening.of_engine(engine), count=2, patience_seconds=0)
        found, most = [], 0
        for answer in stream.answers(engine, endless(engine.task.read(str(scans))), helpers=helpers):
            found.append(told(answer))
            most = max(most, len(multiprocessing.active_children()))
            if len(found) > SCANS and most == 2 and len(found) % SCANS == 0:
                break
    assert found[:SCANS] == alone
    assert found[-SCANS:] == alone
    assert most == 2
    assert "no readable picture" in dict(alone)[str(scans / "017.png")]


def endless(items: Iterator[Any]) -> Iterator[Any]:
    """The items again and again: however fast this process is, the helpers get some."""
    held = list(items)
    for _ in range(1000):
        yield from held


def test_processes_of_helpers_end_with_the_answers(tiny: Bundle, scans: Path) -> None:
    with load(tiny.folder) as engine:
        helpers = Helpers(opening=Opening.of_engine(engine), count=2, patience_seconds=0)
        found = stream.answers(engine, endless(engine.task.read(str(scans))), helpers=helpers)
        while not multiprocessing.active_children():
            next(found)
        found.close()
    assert not multiprocessing.active_children()


def test_where_a_helper_cannot_open_the_model_this_process_goes_on(tiny: Bundle, scans: Path, tmp_path: Path) -> None:
    with load(tiny.folder) as engine:
        opening = Opening.of_engine(engine)
        tiny.folder.rename(tmp_path / "elsewhere")
        helpers = Helpers(opening=opening, count=1, patience_seconds=0)
        found = stream.answers(engine, endless(engine.task.read(str(scans))), helpers=helpers)
        while not multiprocessing.active_children():
            next(found)
        while multiprocessing.active_children():  # until it has said that it cannot
            next(found)
        assert any(next(found).prediction for _ in range(SCANS))
        found.close()


def test_a_helper_opens_no_other_model_than_the_one_that_answers(tiny: Bundle) -> None:
    with load(tiny.folder) as engine:
        opening = dataclasses.replace(Opening.of_engine(engine), sha256="0" * 64)
        with pytest.raises(BundleInvalid, match="than when this began"):
            opening.open()


def test_a_reader_that_goes_away_is_no_failure(tiny: Bundle, scans: Path) -> None:
    line = [*LINE, str(tiny.folder), *[str(scans)] * 40, "--jsonl"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        out, err = pipes(running)
        assert json.loads(out.readline())["file"].endswith("000.png")
        out.close()
        assert b"Traceback" not in err.read()
    assert running.returncode == 141


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("form", ["--json", "--jsonl", "--csv"])
def test_ctrl_c_ends_at_once_and_leaves_whole_answers(tiny: Bundle, scans: Path, form: str) -> None:
    line = [*LINE, str(tiny.folder), str(scans / "000.png"), str(scans / "001.png"), "-", form]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        out, err = pipes(running)
        written = b""
        while b"001.png" not in written:
            written += out.readline()
        running.send_signal(signal.SIGINT)  # while it waits for a picture that does not come
        written += out.read()
        assert err.read().decode().strip() == "Interrupted."
    assert running.returncode == 130
    text = written.decode()
    if form == "--json":
        assert len(json.loads(text)) == 2
    else:
        assert len(text.splitlines()) == (3 if form == "--csv" else 2)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.skipif(sys.platform == "win32", reason="processes have no groups there")
@pytest.mark.skipif(this_machine().cpus_to_use < 2, reason="one CPU needs no helpers")
def test_ctrl_c_in_a_terminal_reaches_helpers_that_are_just_starting(tiny: Bundle, scans: Path) -> None:
    line = [*LINE, str(tiny.folder), *[str(scans)] * 500, "--jsonl"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as running:
        out, err = pipes(running)
        while len(psutil.Process(running.pid).children()) < 2:
            assert out.readline(), "it ended before there were helpers"
        os.killpg(running.pid, signal.SIGINT)  # as a terminal sends it: to all of them
        answers = out.read()
        said = [text for text in err.read().decode().splitlines() if text and "no readable picture" not in text]
    assert running.returncode == 130
    assert said == ["Interrupted."]
    assert answers.endswith(b"\n")


def pipes(running: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert running.stdout is not None
    assert running.stderr is not None
    return running.stdout, running.stderr


def test_answers_that_were_kept_for_an_npz_are_written_when_one_fails(
    kit_inside: Kit, tiny: Bundle, scans: Path, tmp_path: Path
) -> None:
    found = kit_inside("predict", str(tiny.folder), str(scans), "-o", "out.npz")
    assert found.returncode == 4
    with np.load(tmp_path / "out.npz") as arrays:
        assert len(arrays["labels"]) == SCANS - 1


def test_outputs_called_error_and_file_are_answers(kit_inside: Kit, tmp_path: Path) -> None:
    nodes = [graphs.node("Identity", "x", "error"), graphs.node("Neg", "x", "file")]
    shape = ["batch", 2]
    model = graphs.make(nodes, [("x", "float32", shape)], [("error", "float32", shape), ("file", "float32", shape)])
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "two.npz", x=np.array([[1, 2], [3, 4]], np.float32))
    for form in ("--json", "--jsonl", "--csv"):
        found = kit_inside("predict", "model.onnx", "two.npz", form)
        assert found.returncode == 0, found.stderr
        assert "output.error" in found.stdout
    record = json.loads(kit_inside("predict", "model.onnx", "two.npz", "--json").stdout)[0]
    assert (record["file"], record["output.file"]) == ("two.npz", [[-1, -2], [-3, -4]])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_progress_is_shown_where_the_answers_are_not(tiny: Bundle, scans: Path, tmp_path: Path) -> None:
    from tests.helpers.terminal import seen

    shown = seen(("predict", str(tiny.folder), *[str(scans)] * 5, "--jsonl"), cwd=tmp_path, pipes_stdout=True)
    assert shown.code == 4
    assert len(shown.stdout.splitlines()) == 5 * SCANS
    assert re.search(r"of about 1,500 items, [\d,]+ a second", shown.raw)
    assert all("no readable picture" in line or not line for line in shown.lines), shown.text


def test_a_fallback_says_what_failed(kit_inside: Kit, tiny: Bundle, scans: Path, no_cuda: None) -> None:  # noqa: ARG001
    line = ("predict", str(tiny.folder), str(scans / "000.png"), "--provider", "cuda", "--allow-fallback", "--jsonl")
    found = kit_inside(*line)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["provider"] == "cpu"
    assert found.stderr.count("cuda cannot run here:") == 1
    assert "The CPU answers instead" in found.stderr
