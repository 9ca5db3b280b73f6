"""A first try in a process of its own: runtimes are native code, and a file can end or hang the process that opens it.

A file that was not made here and now is opened and run once in a child with limits of time and memory, before this process
does. What survived is remembered by the hashes of its files, as is what kit made and checked itself, and is not tried again;
so are the bundles that come with kit. `KIT_TRUST_FILES=1` leaves the try out.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import platformdirs

from kit.bundle import Bundle
from kit.bundle.manifest import MANIFEST, FileRef, Variant
from kit.bundle.read import PACKAGED
from kit.errors import BundleInvalid, KitError, MemoryShort
from kit.runtime import child
from kit.system import packages, serial
from kit.tensors import Signature

TRUST = "KIT_TRUST_FILES"
SECONDS = 60.0
"""For opening a file and one call, besides what its size takes."""

_BYTES_PER_SECOND = 20e6
_DISTRIBUTIONS = {"openvino": ("openvino",), "mnn": ("mnn",), "onnx-reference": ("onnx",)}
_ONNX_RUNTIME = ("onnxruntime-gpu", "onnxruntime")
_SURVIVED, _SHORT = "survived", "memory"
TRIED = ("onnxruntime", "onnxruntime-plain", "openvino", "onnx-reference")
"""Runtimes that open a graph file."""
_OWN_TRY = frozenset({"mnn"})
"""Runtimes that also try what kit made: it was run in ONNX Runtime, and these end the process more easily."""


def try_variant(bundle: Bundle, variant: Variant, runtime: str) -> None:
    """Open and run a variant in a child, unless it is known to survive that; see `try_file`."""
    refs = (variant.graph, *variant.data)
    if _is_trusted() or _is_known(refs, runtime) or _is_shipped(variant.graph):
        return
    path, *_ = [bundle.check(ref) for ref in refs]  # what is remembered are hashes: they must be those of what is tried
    try_file(path, refs, runtime, signature=bundle.signature)


def try_file(path: Path, refs: Sequence[FileRef], runtime: str, *, signature: Signature | None) -> None:
    """Open an ONNX file in a child and run it once, unless its like is known to survive that.

    A file that the runtime refuses in words survives: the caller will hear them. Raises what `survives` does.

    Args:
        path: Of the graph, or of what a converter made of it; weights lie beside it.
        refs: The graph's files: what is remembered are their hashes.
        runtime: One of TRIED, or one that has a converter.
        signature: What the model takes and gives; None: as the graph has it.
    """
    if _is_trusted() or _is_known(refs, runtime):
        return
    if survives(path, runtime, signature=signature, size_bytes=sum(ref.size_bytes for ref in refs)):
        _remember(_mark(refs, _named(runtime)))


def remember(variant: Variant) -> None:
    """Note that kit made a variant on this machine and ran it: no runtime tries it first."""
    _remember(_mark((variant.graph, *variant.data), ""))


def survives(
    path: Path, runtime: str, *, signature: Signature | None, size_bytes: int, seconds: float = SECONDS
) -> bool:
    """Return whether a child opened and ran a file; False if no child could say.

    Raises:
        BundleInvalid: It was ended by the system, or did not answer in time.
        MemoryShort: It needed more memory than is free.
    """
    limit = seconds + size_bytes / _BYTES_PER_SECOND
    question = {
        "runtime": runtime,
        "path": str(path.resolve()),
        "signature": None if signature is None else serial.encode(signature),
    }
    try:
        done = child.ask(__name__, question, seconds=limit, environment={TRUST: "1"})
    except subprocess.TimeoutExpired as error:
        raise BundleInvalid(
            f"{runtime} does not answer within {limit:.0f} s when it opens {path.name} and runs it once",
            hint=f"if that is its usual time, set {TRUST}=1 in the environment",
        ) from error
    except OSError:  # no process to be had
        return False
    if by := child.ended_by(done):
        raise BundleInvalid(
            f"{runtime} crashes on {path.name}: the process that tried it was ended by {by}",
            hint="use another --runtime, or export the model again",
        )
    lines = done.stdout.decode(errors="replace").splitlines()  # libraries print, some of them at the very end
    answer = next((line for line in reversed(lines) if line.startswith((_SURVIVED, _SHORT))), "")
    word, _, told = answer.partition(" ")
    if word == _SHORT:
        raise MemoryShort(f"there is too little memory for {path.name}: {told}", hint="close other programs")
    return word == _SURVIVED


def _is_trusted() -> bool:
    return os.environ.get(TRUST, "") not in {"", "0"}


def _is_known(refs: Sequence[FileRef], runtime: str) -> bool:
    words = (_named(runtime),) if runtime in _OWN_TRY else ("", _named(runtime))
    return any(_mark(refs, word).exists() for word in words)


def _is_shipped(ref: FileRef) -> bool:
    """Whether a graph is one of those that come with kit, wherever it lies now."""
    for manifest in PACKAGED.glob(f"*/{MANIFEST}"):
        with contextlib.suppress(OSError):
            if ref.sha256.encode() in manifest.read_bytes():
                return True
    return False


def _named(runtime: str) -> str:
    """Return a runtime with its version: another one may fail where this did not."""
    names = _DISTRIBUTIONS.get(runtime, _ONNX_RUNTIME)
    return " ".join([runtime, *(version for name in names if (version := packages.version(name)) is not None)])


def _mark(refs: Sequence[FileRef], word: str) -> Path:
    key = hashlib.sha256("|".join([word, *(ref.sha256 for ref in refs)]).encode()).hexdigest()[:32]
    return platformdirs.user_cache_path("kit") / "tried" / key


def _remember(mark: Path) -> None:
    with contextlib.suppress(OSError):  # the next opening tries again
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _child(asked: dict[str, Any]) -> str:
    from kit.samples import seeded

    signature = None if asked["signature"] is None else serial.decode(Signature, asked["signature"])
    try:
        with _opened(asked["runtime"], Path(asked["path"]), signature) as runner:
            runner.run(seeded(runner.signature, sizes=runner.signature.usual_sizes()).inputs)
    except MemoryShort as error:
        return f"{_SHORT} {' '.join(str(error).split())}"
    except MemoryError:
        return _SHORT
    except KitError:
        pass  # in words: this process will hear them
    return _SURVIVED


def _opened(runtime: str, path: Path, signature: Signature | None) -> Any:
    from kit.runtime.base import RunnerOptions
    from kit.runtime.onnxruntime import OnnxRuntimeRunner

    if runtime not in _DISTRIBUTIONS or signature is None:
        return OnnxRuntimeRunner(path, RunnerOptions(), signature=signature)
    if runtime == "openvino":
        from kit.runtime.openvino import OpenVinoRunner

        return OpenVinoRunner(path, RunnerOptions(), signature=signature)
    if runtime == "mnn":
        from kit.runtime.mnn import MnnRunner

        return MnnRunner(path, RunnerOptions(), signature=signature)
    from kit.runtime.reference import ReferenceRunner

    return ReferenceRunner(path, RunnerOptions(), signature=signature)


if __name__ == "__main__":
    print(_child(child.asked()))  # noqa: T201 - the answer to the parent
