"""Where a run is, on disk: one safetensors file, written whole or not at all, and the weights of teachers that are done."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kit.errors import BadInput, StorageUnavailable
from kit.lab.data import Dataset
from kit.lab.training.recipe import Recipe
from kit.lab.training.trainer import State, within
from kit.system import files, packages

_FILE = "checkpoint.safetensors"
_AGAIN = "free some space, then repeat the line with --resume"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A moment between two epochs.

    Attributes:
        phase: `teacher-0`, `teacher-1`, ..., `student`.
        epoch: The last one that is done.
        best: Weights of the best epoch so far; empty before there is one.
        seconds: Spent training, in this phase and before.
        threads: PyTorch's; 0 if that is not known.
    """

    phase: str
    epoch: int
    state: State
    best: State
    history: tuple[dict[str, float], ...]
    seconds: float
    threads: int = 0


class RunFolder:
    """A run's folder, made when something is written; checkpoints of another recipe or data set are refused."""

    def __init__(self, folder: Path, recipe: Recipe, dataset: Dataset) -> None:
        self.folder = folder
        self._identity = _identity(recipe, dataset)
        self._recipe = recipe.described()
        self._is_new = False

    def save(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint.

        Raises:
            StorageUnavailable: It cannot be written; the last one is as it was.
        """
        tensors = {f"state.{name}": value for name, value in checkpoint.state.items()}
        tensors |= {f"best.{name}": value for name, value in checkpoint.best.items()}
        told = {"phase": checkpoint.phase, "epoch": checkpoint.epoch, "seconds": checkpoint.seconds}
        self._write(_FILE, tensors, {**told, "history": checkpoint.history, "threads": torch.get_num_threads()})

    def load(self) -> Checkpoint | None:
        """Return the last checkpoint; None where there is none.

        Raises:
            BadInput: It is corrupt, or of another recipe or data set.
        """
        found = self._read(_FILE)
        if found is None:
            return None
        tensors, told = found
        return Checkpoint(
            phase=told["phase"],
            epoch=told["epoch"],
            state=within(tensors, "state."),
            best=within(tensors, "best."),
            history=tuple(told["history"]),
            seconds=told["seconds"],
            threads=told.get("threads", 0),
        )

    def save_weights(self, phase: str, weights: State) -> None:
        """Keep the weights of a teacher that is done."""
        self._write(f"{phase}.safetensors", weights, {})

    def load_weights(self, phase: str) -> State | None:
        """Return the weights of a teacher; None if it is not done."""
        found = self._read(f"{phase}.safetensors")
        return None if found is None else found[0]

    def begin_anew(self) -> None:
        """Forget earlier runs, but only once this one has something of its own to write."""
        self._is_new = True

    def _clear(self) -> None:
        """Remove what an earlier run could be taken up from, and what a killed one left half-written."""
        old = ("teacher-*.safetensors", f"{files.PARTIAL}*")
        try:
            for path in (self.folder / _FILE, *(found for pattern in old for found in self.folder.glob(pattern))):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StorageUnavailable(
                f"cannot write into {self.folder}: {error.strerror or error}", hint=_AGAIN
            ) from error

    def _write(self, name: str, tensors: State, told: dict[str, Any]) -> None:
        safetensors = packages.needed(
            "safetensors.torch", distribution="safetensors", purpose="saving a checkpoint", extra="train"
        )
        if self._is_new:
            self._clear()
            self._is_new = False
        whole = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        metadata = {"kit": json.dumps({"identity": self._identity, "recipe": self._recipe, **told})}
        try:
            files.write(self.folder / name, safetensors.save(whole, metadata=metadata))
        except StorageUnavailable as error:
            raise StorageUnavailable(str(error), hint=_AGAIN) from error

    def _read(self, name: str) -> tuple[State, dict[str, Any]] | None:
        path = self.folder / name
        if not path.exists():
            return None
        safetensors = packages.needed(
            "safetensors", distribution="safetensors", purpose="reading a checkpoint", extra="train"
        )
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                told = json.loads(file.metadata()["kit"])
                tensors: State = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{path} is no checkpoint: {error}", hint="train anew, without --resume") from error
        if told.get("identity") != self._identity:
            raise BadInput(
                f"{path} is of another recipe or other data" + _differences(told.get("recipe", {}), self._recipe),
                hint="repeat the line that began that run and add --resume, or train anew without it",
            )
        return tensors, told


def _identity(recipe: Recipe, dataset: Dataset) -> str:
    """Hash what decides the result: the recipe, the labels, and every hundredth image."""
    digest = hashlib.sha256(json.dumps(recipe.described(), sort_keys=True).encode())
    digest.update(dataset.train.labels.tobytes())
    digest.update(dataset.train.images[::100].tobytes())
    return digest.hexdigest()


def _differences(old: dict[str, str], new: dict[str, str]) -> str:
    """Return `: epochs 10, now 3`, or nothing where the recipes are the same."""
    found = [f"{name} {old[name]}, now {value}" for name, value in new.items() if old.get(name, value) != value]
    return f": {'; '.join(found[:3])}" if found else ""
