"""What `kit tune` chose for a bundle on this machine, kept in the user's data folder and never in the bundle.

A choice is found again by the machine's fingerprint, the model's signature, the hashes of its variants, and the version of
the runtime; if one of them changes it is as if there were none. `load` of kit.engine asks for it if its caller chooses nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from kit.bundle import Bundle
from kit.choices import Goal
from kit.errors import BadInput, KitError
from kit.runtime.base import RunnerOptions
from kit.system import files, packages, plain_json, serial

_KIND = "kit-tuning"
_VERSION = 2
_MOST_BYTES = 16 * 2**20
_DISTRIBUTIONS = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "litert": ("ai-edge-litert",),
    "mnn": ("mnn",),
}


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What runs a bundle best here.

    Attributes:
        runtime: Name of kit.runtime.registry.
        sizes: Of the axes in one call, as it was measured.
        p50_us: Latency of one call.
        speedup: Against the baseline in ONNX Runtime on one thread, in the same run.
        low: Lower end of its 95 % interval; `high` is the upper one.
        measured: Date and time, UTC.
        runtime_version: Of the package; another one may choose otherwise.
    """

    variant: str
    runtime: str
    options: RunnerOptions
    goal: Goal
    sizes: dict[str, int]
    p50_us: float
    speedup: float
    low: float
    high: float
    measured: str
    runtime_version: str = ""

    def describe(self) -> str:
        """Return `int8-pixel in onnxruntime, 1 thread`."""
        return f"{self.variant} in {self.runtime}, {self.options.describe_session()}"


def store_path() -> Path:
    """Return the file that holds this machine's choices."""
    return platformdirs.user_data_path("kit") / "tuning.json"


def choice_for(bundle: Bundle) -> Choice | None:
    """Return what was chosen for a bundle here; None if nothing was, it is outdated, or the store is unreadable."""
    try:
        if not store_path().exists():
            return None
        key = _key(bundle)
        found = serial.decode(Choice, _held()[key], path=key)
    except (KitError, KeyError, serial.DecodeError, OSError):
        return None
    if found.runtime_version != runtime_version(found.runtime):
        return None
    return found if found.variant in {variant.id for variant in bundle.variants} else None


def remember(bundle: Bundle, choice: Choice) -> None:
    """Keep a choice, in place of an earlier one.

    Raises:
        BadInput: The store is no file of kit's.
        StorageUnavailable: It cannot be written.
    """
    _save({**_held(), _key(bundle): serial.encode(choice)})


def forget(bundle: Bundle) -> bool:
    """Drop the choice for a bundle; return whether there was one. Raises what `remember` does."""
    held = _held()
    if held.pop(_key(bundle), None) is None:
        return False
    _save(held)
    return True


def check_writable() -> None:
    """Raise what `remember` would raise: before a long measurement, not after it."""
    _held()
    files.check_writable(store_path())


def runtime_version(runtime: str) -> str:
    """Return the versions of the packages behind a runtime, such as `onnxruntime 1.31.1`; empty for one kit does not know."""
    names = _DISTRIBUTIONS.get(runtime, ())
    return ", ".join(f"{name} {version}" for name in names if (version := packages.version(name)) is not None)


def _key(bundle: Bundle) -> str:
    from kit.system.machine import this_machine  # asks nvidia-smi: only if something was tuned

    digest = hashlib.sha256(json.dumps(serial.encode(bundle.signature), sort_keys=True).encode())
    for variant in bundle.variants:
        digest.update(" ".join([variant.id, *(one.sha256 for one in variant.files())]).encode())
    return f"{this_machine().fingerprint}/{digest.hexdigest()[:16]}"


def _held() -> dict[str, Any]:
    """Return the choices as they are kept, of other machines that share the folder too: only one's own is decoded."""
    path = store_path()
    try:
        data: Any = plain_json.read(path.read_bytes(), what=str(path), most_bytes=_MOST_BYTES)
        if data["kind"] != _KIND or data["version"] != _VERSION:
            raise BadInput(f"{path} is of another version of kit", hint="remove it and tune again")
        return dict(data["choices"])
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} holds no choices of kit tune: {error}", hint="remove it and tune again") from error


def _save(choices: dict[str, Any]) -> None:
    held = {"kind": _KIND, "version": _VERSION, "choices": choices}
    files.write(store_path(), json.dumps(held, indent=2) + "\n")
