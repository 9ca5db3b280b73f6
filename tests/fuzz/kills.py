"""Kills of whole commands: `python -m tests.fuzz.kills --count 1000`; what lies there afterwards is the old or the new, whole.

Each turn starts `kit export`, `kit pack` or `kit unpack`, over what is there or into a new folder, ends it with SIGKILL at a
moment between its start and its usual end, and opens what is left: every file must be what the manifest says. In every tenth
turn another one runs beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import onnx

from kit.bundle import find, packing
from kit.errors import KitError
from tests import graphs

_KIT = [sys.executable, "-c", "from apps.cli import main; main()"]


class Grounds:
    """A model, a bundle of it, and the bundle packed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.bundle, self.packed = folder / "model.onnx", folder / "bundle", folder / "bundle.kit"
        onnx.save(graphs.pixels(), self.model)
        self._finished(self._export())
        packing.pack(find(self.bundle), self.packed)
        self.seconds = {name: self._timed(words) for name, words in self.commands().items()}

    def commands(self) -> dict[str, list[str]]:
        """Return the commands by name: each writes over what is there, or into a folder that is not."""
        return {
            "export": self._export(),
            "export anew": ["export", str(self.model), "--out", str(self.folder / "fresh")],
            "pack": ["pack", str(self.bundle), "-o", str(self.packed)],
            "unpack": ["unpack", str(self.packed), "-o", str(self.bundle)],
            "unpack anew": ["unpack", str(self.packed), "-o", str(self.folder / "fresh")],
        }

    def kill(self, name: str, share: float, *, beside: str = "") -> str:
        """Start a command and end it after a share of its usual time; return what is damaged, or nothing."""
        shutil.rmtree(self.folder / "fresh", ignore_errors=True)
        other = subprocess.Popen([*_KIT, *self.commands()[beside]], **_QUIET) if beside else None
        with subprocess.Popen([*_KIT, *self.commands()[name]], **_QUIET) as child:
            time.sleep(self.seconds[name] * share)
            child.kill()
        if other is not None:
            other.wait()
        return self.damage()

    def damage(self) -> str:
        """Return what of the bundles is not whole."""
        for path in (self.bundle, self.packed, self.folder / "fresh"):
            if path == self.folder / "fresh" and not (path / "manifest.json").exists():
                continue
            try:
                bundle = find(path)
                bundle.golden()
                for variant in bundle.variants:
                    bundle.model(variant)
            except KitError as error:
                return f"{path.name}: {error}"
        return ""

    def _export(self) -> list[str]:
        return ["export", str(self.model), "--out", str(self.bundle)]

    def _timed(self, words: list[str]) -> float:
        began = time.monotonic()
        self._finished(words)
        return time.monotonic() - began

    def _finished(self, words: list[str]) -> None:
        subprocess.run([*_KIT, *words], check=True, **_QUIET)


_QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def main() -> int:
    """Kill as often as asked; exit code 1 if something was damaged."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng = random.Random(asked.seed)
    damaged, done = [], dict.fromkeys(("export", "export anew", "pack", "unpack", "unpack anew"), 0)
    with tempfile.TemporaryDirectory() as folder:
        grounds = Grounds(Path(folder))
        for turn in range(asked.count):
            name = list(done)[turn % len(done)]
            beside = "unpack" if turn % 10 == 0 else ""
            done[name] += 1
            if problem := grounds.kill(name, rng.random(), beside=beside):
                damaged.append(f"turn {turn}, {name}: {problem}")
    print(json.dumps({"kills": done, "damaged": damaged}, indent=1))  # noqa: T201 - a command
    return 1 if damaged else 0


if __name__ == "__main__":
    sys.exit(main())
