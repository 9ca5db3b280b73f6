"""What is spoilt, and the commands that are then run on it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from apps.cli import run
from kit.bench.measure import Plan
from kit.bench.run import Request, bench
from kit.bundle import file_ref, find, packing
from kit.system import serial
from tests import graphs
from tests.fuzz import mutations
from tests.fuzz.mutations import Rng

Spoil = Callable[[Path, Rng], list[list[str]]]
"""Make a spoilt thing in an empty folder; return the commands to run on it."""

_CLEAN = frozenset({0, 1, 2, 3, 4})


class Subjects:
    """Sound things, made once in a folder, that spoilt ones are made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = graphs.bundle(graphs.pixels(), folder / "tiny")
        self.packed = packing.pack(self.bundle, folder / "tiny.kit").read_bytes()
        self.pictures = dict(_pictures())
        request = Request(plan=Plan(rounds=10, turn_ms=0.1, warmup_ms=0.1), runtimes=("onnxruntime",))
        self.results = json.dumps(serial.encode(bench(self.bundle, request))).encode()
        self.digits = find("mnist-mlp")
        self.sound = {"spoilt", *(path.name for path in folder.iterdir())}
        self.kinds: dict[str, Spoil] = {
            "manifest": self._manifest,
            "graph": self._graph,
            "golden": self._golden,
            "packed": self._packed,
            "picture": self._picture,
            "results": self._results,
        }

    def problem(self, number: int, seed: int) -> str:
        """Spoil one thing, the number decides what and how, and run the commands on it; return what went wrong, or nothing."""
        rng = np.random.default_rng([seed, number])
        spoil = list(self.kinds.values())[number % len(self.kinds)]
        place = self.folder / "spoilt"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for command in spoil(place, rng):
            told, failed = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(failed):
                code = run(command)
            said = told.getvalue() + failed.getvalue()
            if code not in _CLEAN:
                return f"kit {command[0]} ended with {code}: {failed.getvalue().strip()[-300:]}"
            if "\x1b" in said or "Traceback" in said:
                return f"kit {command[0]} let escape sequences or a traceback through: {said[-300:]!r}"
        stray = sorted(path.name for path in self.folder.iterdir() if path.name not in self.sound)
        return f"files outside: {stray}" if stray else ""

    def _copied(self, place: Path) -> Path:
        folder = place / "tiny"
        shutil.copytree(self.bundle.folder, folder)
        for path in folder.iterdir():
            path.chmod(0o644)
        return folder

    def _manifest(self, place: Path, rng: Rng) -> list[list[str]]:
        path = self._copied(place) / "manifest.json"
        spoil = mutations.of_bytes if rng.random() < 0.2 else mutations.of_json
        path.write_bytes(spoil(path.read_bytes(), rng))
        return [["info", str(path.parent)], ["verify", str(path.parent)]]

    def _graph(self, place: Path, rng: Rng) -> list[list[str]]:
        folder = self._copied(place)
        variant = self.bundle.variant()
        content = mutations.of_graph((folder / variant.graph.file).read_bytes(), rng)
        (folder / variant.graph.file).unlink()
        ref = file_ref(content, variant.id, ".onnx")
        (folder / ref.file).write_bytes(content)
        spoilt = dataclasses.replace(variant, graph=ref)
        manifest = dataclasses.replace(self.bundle.manifest, variants=(spoilt,))
        (folder / "manifest.json").write_text(json.dumps(serial.encode(manifest)))
        ready = place / "model.onnx"
        ready.write_bytes(content)
        return [["verify", str(folder)], ["info", str(ready)]]

    def _golden(self, place: Path, rng: Rng) -> list[list[str]]:
        folder = self._copied(place)
        golden = self.bundle.manifest.golden
        content = mutations.of_zip((folder / golden.file.file).read_bytes(), rng, usual=zipfile.ZIP_DEFLATED)
        (folder / golden.file.file).unlink()
        ref = file_ref(content, "golden", ".npz")
        (folder / ref.file).write_bytes(content)
        manifest = dataclasses.replace(self.bundle.manifest, golden=dataclasses.replace(golden, file=ref))
        (folder / "manifest.json").write_text(json.dumps(serial.encode(manifest)))
        return [["verify", str(folder)]]

    def _packed(self, place: Path, rng: Rng) -> list[list[str]]:
        path = place / "tiny.kit"
        path.write_bytes(mutations.of_zip(self.packed, rng, usual=zipfile.ZIP_STORED))
        return [["info", str(path)], ["unpack", str(path), "-o", str(place / "out")]]

    def _picture(self, place: Path, rng: Rng) -> list[list[str]]:
        names = list(self.pictures)
        name = names[int(rng.integers(0, len(names)))]
        path = place / name
        path.write_bytes(mutations.of_bytes(self.pictures[name], rng))
        return [["predict", str(self.digits.folder), str(path)]]

    def _results(self, place: Path, rng: Rng) -> list[list[str]]:
        path, sound = place / "results.json", place / "sound.json"
        sound.write_bytes(self.results)
        spoil = mutations.of_bytes if rng.random() < 0.2 else mutations.of_json
        path.write_bytes(spoil(self.results, rng))
        return [["report", str(path), "-o", str(place / "report.html")], ["compare", str(sound), str(path)]]


def _pictures() -> dict[str, bytes]:
    grey = (np.add.outer(np.arange(64), np.arange(64)) * 2).astype(np.uint8)
    flat, colour = Image.fromarray(grey), Image.fromarray(np.stack([grey] * 3, -1))
    kinds = {
        "PNG": flat,
        "JPEG": colour,
        "TIFF": Image.fromarray(grey.astype(np.uint16) * 256),
        "WEBP": colour,
        "AVIF": colour,
        "GIF": flat,
        "BMP": flat,
        "PPM": colour,
    }
    made = {}
    for kind, image in kinds.items():
        buffer = io.BytesIO()
        with contextlib.suppress(KeyError, OSError):  # a Pillow without that format
            image.save(buffer, kind)
            made[f"picture.{kind.lower()}"] = buffer.getvalue()
    return made
