"""Run it: `python -m tests.fuzz --count 20000 [--seed 0]`; exit code 1 if one input was not answered cleanly."""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

MOST_SECONDS = 60.0
"""For one input."""


def main() -> int:
    """Parse the command line, as parent or as child."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return _child(asked.first, asked.count, asked.seed)
    problems = fuzz(asked.count, asked.seed)
    for number, problem in problems.items():
        print(f"{number}: {problem}")  # noqa: T201 - a command
    print(f"{asked.count - len(problems):,} of {asked.count:,} inputs answered cleanly, seed {asked.seed}")  # noqa: T201
    return 1 if problems else 0


def fuzz(count: int, seed: int) -> dict[int, str]:
    """Run so many inputs in a child, a new one whenever one ended or hung; return what was not clean, by number."""
    problems: dict[int, str] = {}
    number = 0
    while number < count:
        number = _one_child(number, count, seed, problems)
    return problems


def _one_child(first: int, count: int, seed: int, problems: dict[int, str]) -> int:
    """Run inputs until one ends or hangs the child; return the number of the next."""
    command = [sys.executable, "-m", "tests.fuzz", "--child", f"--first={first}", f"--count={count}", f"--seed={seed}"]
    environment = {**os.environ, "KIT_TRUST_FILES": "1"}  # it is a child already
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        lines: queue.Queue[str] = queue.Queue()
        assert child.stdout is not None
        reader = threading.Thread(target=_read, args=(child.stdout, lines), daemon=True)
        reader.start()
        number = first
        while True:
            try:
                line = lines.get(timeout=MOST_SECONDS)
            except queue.Empty:
                child.kill()
                problems[number] = f"no answer within {MOST_SECONDS:.0f} s"
                return number + 1
            if not line:
                break
            told = json.loads(line)
            number = told["number"] + 1
            if told["problem"]:
                problems[told["number"]] = told["problem"]
        if child.wait() != 0:
            problems[number] = f"the process ended with {child.returncode}"
            return number + 1
    return count


def _read(stream: IO[str], lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def _child(first: int, count: int, seed: int) -> int:
    from tests.fuzz.subjects import Subjects

    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w")  # commands may write where they like
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder + ".cache"
        subjects = Subjects(Path(folder))
        for number in range(first, count):
            problem = subjects.problem(number, seed)
            print(json.dumps({"number": number, "problem": problem}), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
