"""Work in a process of its own: answers, errors, limits of time and memory, and an end at any moment."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from apps.demo.worker import Limits, Worker, WorkerStopped
from kit.errors import BundleNotFound, KitError, MemoryShort, UsageError
from tests.conftest import ROOT

TASKS = """
import os
import subprocess
import sys
import time
import numpy as np
from kit.errors import UsageError
from apps.demo.worker import Answer

def echo(job):
    print("what tasks print is nobody's answer")
    return Answer({"told": job.asked, "pid": os.getpid()}, {name: one + one for name, one in job.arrays.items()})

def remember(job):
    job.state["calls"] = job.state.get("calls", 0) + 1
    for share in (0.0, 0.5, 1.0):
        job.on_progress("counting", share)
    return {"calls": job.state["calls"]}

def refuse(job):
    raise UsageError("not like this", hint="like that")

def break_down(job):
    raise ZeroDivisionError("a defect")

def sleep(job):
    while True:
        pass

def talk(job):
    while True:
        job.on_progress("still here", 0.5)

def mumble(job):
    return {"number": np.int64(3)}

def leave(job):
    os._exit(7)

def grow(job):
    kept = []
    while True:
        kept.append(np.ones(2**24, np.uint8))

LIVE = (
    "import sys, time; file = open(sys.argv[1], 'w');"
    "print('born', file=file, flush=True); time.sleep(20); print('old', file=file)"
)

def live(job):
    sys.argv = ["-c", job.asked["pipe"]]
    exec(LIVE)

def beget(job):
    subprocess.Popen([sys.executable, "-c", LIVE, job.asked["pipe"]])
    return {}

def grow_in_another(job):
    subprocess.run([sys.executable, "-c", "kept = b'x' * 400_000_000; import time; time.sleep(20)"])
"""


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tasks.py").write_text(TASKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker() as found:
        yield found


def test_values_and_arrays_go_there_and_back(worker: Worker) -> None:
    arrays = {
        "a matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "nothing": np.zeros((0, 4), np.uint8),
        "a scalar": np.array(5, np.int64),
        "bits": np.array([True, False]),
        "backwards": np.arange(4, dtype=np.int16)[::-1],
    }
    answer = worker.ask("tasks:echo", {"text": "ä", "number": 1.5}, arrays)
    assert answer.told["told"] == {"text": "ä", "number": 1.5}
    assert answer.told["pid"] != psutil.Process().pid
    assert list(answer.arrays) == list(arrays)
    assert all(
        np.array_equal(answer.arrays[name], one + one) and answer.arrays[name].dtype == one.dtype
        for name, one in arrays.items()
    )


def test_state_stays_and_progress_is_told(worker: Worker) -> None:
    told: list[tuple[str, float]] = []
    assert worker.ask("tasks:remember").told == {"calls": 1}
    assert worker.ask("tasks:remember", on_progress=lambda what, share=None: told.append((what, share))).told == {
        "calls": 2
    }
    assert told == [("counting", 0.0), ("counting", 0.5), ("counting", 1.0)]


def test_errors_arrive_as_what_they_are_and_the_process_goes_on(worker: Worker) -> None:
    with pytest.raises(UsageError, match="not like this") as caught:
        worker.ask("tasks:refuse")
    assert caught.value.hint == "like that"
    with pytest.raises(KitError, match="a defect of kit: ZeroDivisionError"):
        worker.ask("tasks:break_down")
    with pytest.raises(BundleNotFound):
        worker.ask("apps.demo.jobs:open_bundle", {"path": "nowhere", "runtimes": ["onnxruntime"]})
    assert worker.ask("tasks:remember").told == {"calls": 1}


def test_what_takes_too_long_is_ended(worker: Worker) -> None:
    with pytest.raises(WorkerStopped, match=r"longer than 0\.3 s"):
        worker.ask("tasks:sleep", seconds=0.3)
    assert not worker.is_alive
    with pytest.raises(WorkerStopped):
        worker.ask("tasks:echo")


def test_talking_all_the_time_is_no_way_around_the_limit(worker: Worker) -> None:
    with pytest.raises(WorkerStopped, match="longer than"):
        worker.ask("tasks:talk", seconds=0.3)


def test_an_answer_nobody_waited_for_is_not_the_next_one(worker: Worker) -> None:
    def stop_listening(_what: str, _share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker.ask("tasks:remember", on_progress=stop_listening)
    assert not worker.is_alive


def test_an_answer_that_cannot_be_told_is_an_error_and_the_process_goes_on(worker: Worker) -> None:
    with pytest.raises(KitError, match="a defect of kit"):
        worker.ask("tasks:mumble")
    assert worker.ask("tasks:remember").told == {"calls": 1}


def test_it_is_stopped_from_another_thread(worker: Worker) -> None:
    caught: list[KitError] = []

    def ask() -> None:
        try:
            worker.ask("tasks:sleep")
        except KitError as error:
            caught.append(error)

    worker.ask("tasks:echo")  # it has started
    asking = threading.Thread(target=ask)
    asking.start()
    worker.stop()
    asking.join(10)
    assert not asking.is_alive()
    assert isinstance(caught[0], WorkerStopped)


def test_a_process_that_ends_by_itself_is_told(worker: Worker) -> None:
    with pytest.raises(WorkerStopped, match="ended"):
        worker.ask("tasks:leave")


@pytest.mark.parametrize("task", ["tasks:grow", "tasks:grow_in_another"])
def test_a_process_that_takes_too_much_memory_is_ended(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker(Limits(memory_bytes=300_000_000)) as limited, pytest.raises(MemoryShort):
        limited.ask(task, seconds=60)


def test_a_worker_that_is_forgotten_ends() -> None:
    forgotten = Worker()
    process = psutil.Process(forgotten._process.pid)
    del forgotten
    gc.collect()
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.skipif(sys.platform == "win32", reason="Windows limits no processor time")
def test_a_process_that_takes_too_much_processor_time_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        Worker(Limits(cpu_seconds=2)) as limited,
        pytest.raises(WorkerStopped, match="more than 2 s of processor time"),
    ):
        limited.ask("tasks:sleep", seconds=60)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    """A pipe with a name, which a process holds open as long as it lives: its reader sees the end."""
    if sys.platform == "win32":
        pytest.skip("Windows has no such pipes")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_what_a_process_has_started_ends_with_it(worker: Worker, pipe: Path) -> None:
    worker.ask("tasks:beget", {"pipe": str(pipe)})
    with pipe.open() as life:
        assert life.readline() == "born\n"
        worker.stop()
        assert life.read() == ""


def test_what_a_process_has_started_ends_when_it_ends_by_itself(worker: Worker, pipe: Path) -> None:
    worker.ask("tasks:beget", {"pipe": str(pipe)})
    with pipe.open() as life:
        assert life.readline() == "born\n"
        with pytest.raises(WorkerStopped):
            worker.ask("tasks:leave")
        assert life.read() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_a_process_ends_with_a_parent_that_is_killed(worker: Worker, pipe: Path) -> None:  # noqa: ARG001 - its tasks
    program = f"from apps.demo.worker import Worker; Worker().ask('tasks:live', {{'pipe': {str(pipe)!r}}})"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT) as parent, pipe.open() as life:
        assert life.readline() == "born\n"
        parent.kill()
        assert life.read() == ""


def test_limits_below_zero_are_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Limits(memory_bytes=-1)
