"""A Python process of its own with limits of time and memory, for what may crash, hang or take all memory there is.

done = ask("kit.runtime.trial", {"path": "model.onnx"}, seconds=60)  # the module calls `asked` and prints an answer
ended_by(done)  # "SIGSEGV", or empty
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_LEAST_MEMORY_BYTES = 2**30
_MEMORY, _SECONDS = "memory_bytes", "seconds"


def ask(
    module: str,
    question: Mapping[str, Any],
    *,
    seconds: float,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run a module of kit's in a child that may take so much time, and as much memory as is free now.

    Its `__main__` part calls `asked`, which returns the question there, as JSON; `environment` is added to this
    process's own. The child is killed after `seconds`.

    Raises:
        subprocess.TimeoutExpired: It took longer.
        OSError: No process is to be had.
    """
    if not sys.executable:
        raise OSError("Python runs inside of another program, which cannot be started again")
    import psutil

    limits = {_MEMORY: max(psutil.virtual_memory().available, _LEAST_MEMORY_BYTES), _SECONDS: seconds}
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, "-P", "-m", module],
        input=json.dumps({**question, **limits}).encode(),
        capture_output=True,
        timeout=seconds,
        check=False,
        cwd=folder,
        env={**os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(paths)},
    )


def ended_by(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the signal that ended a child, such as `SIGSEGV`; empty if it ended by itself."""
    if done.returncode >= 0:
        return ""
    number = -done.returncode
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def asked() -> dict[str, Any]:
    """Return what the parent asks, having taken on its limits: called by the child before anything else."""
    question: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    _limit(int(question.pop(_MEMORY)), float(question.pop(_SECONDS)))
    return question


def _limit(memory_bytes: int, seconds: float) -> None:
    if sys.platform != "linux":
        return
    import resource

    for what, most in (
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_CPU, int(seconds * (os.cpu_count() or 1)) + 1),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # more than a limit that is already there
            resource.setrlimit(what, (most, most))
