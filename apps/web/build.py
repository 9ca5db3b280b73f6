"""Writes the page: its own files (apps/web/site), the runtime, the model, and the proof that travels with it.

build(find("mnist-mlp"), Path("site"))     # works from any static host, without a server of its own
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from apps.web.proof import Proof, proof_of
from kit import __version__
from kit.bundle import Bundle, Variant
from kit.choices import Precision
from kit.errors import BundleInvalid, StorageUnavailable, UsageError
from kit.metrics import fidelity
from kit.ready import ReadyModel
from kit.report.format import size
from kit.runtime.browser import SESSION, packages
from kit.samples import SEEDED
from kit.system import files, plain_json
from kit.tasks.base import Task
from kit.tasks.registry import task_of
from kit.tensors import Signature
from kit.verify.model import tolerance_of

OWN = Path(__file__).with_name("site")
DESCRIPTION = "site.json"
_MOST_BYTES = 2**24
_WORKER = "sw.js"
_ELSEWHERE = "free some space there, or name another place: -o DIR"
_LATER = ("proof.bin", "proof.json", "ort/ort.webgpu.min.mjs")
_GPU = "asyncify"
"""In the names of the runtime's files for a GPU."""

_WHERE = "It runs in this browser: nothing is sent anywhere."
_FLAT_VALUES = 256
_TOKENIZERS = frozenset({"BPE", "Unigram", "WordPiece"})
_TOKENIZER_MOST_BYTES = 2**28
_TOLERANCE = {"uint8": 1.0}


@dataclass(frozen=True, kw_only=True)
class Site:
    """A page that was written.

    Attributes:
        folder: Where it lies.
        variants: What it offers, the first one at once.
        page_bytes: Of the page itself, without runtime and model.
        runtime_bytes: Of onnxruntime-web.
        model_bytes: Of all variants, and the tokenizer.
        remarks: What it cannot do, in words.
    """

    folder: Path
    variants: tuple[str, ...]
    page_bytes: int
    runtime_bytes: int
    model_bytes: int
    remarks: tuple[str, ...]


def build(bundle: Bundle, folder: Path, *, variants: Sequence[str] = (), webgpu: bool = True) -> Site:
    """Write a bundle as a page.

    Args:
        bundle: What it runs; a ready model will do.
        folder: Where; what lies there is replaced if `kit web` wrote all of it.
        variants: Which ones it offers, the first at once; none for the bundle's default.
        webgpu: Whether the larger runtime comes along, for browsers with a GPU.

    Raises:
        UsageError: Something else lies there.
        BundleInvalid: A file of the bundle is missing or was altered.
        VerifyFailed: A variant does not answer here as its bundle promises.
        Unavailable: onnxruntime-web cannot be had.
        StorageUnavailable: It cannot be written; nothing was.
    """
    _refuse_foreign(folder)
    chosen = [bundle.variant(one) for one in variants] or [bundle.variant()]
    task = task_of(bundle)
    proof = proof_of(bundle, chosen)
    remarks: list[str] = []
    described = _task(task, bundle, remarks)
    if described["kind"] == "tensors":
        proof.described["items"] = []  # the page has no way in that they could prove
    files.check_room(folder.parent, sum(one.size_bytes for one in chosen) + 5 * 10**7, what="the page")
    partial = folder.parent / files.partial_name()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        files.sweep(folder.parent)
        partial.mkdir()
        try:
            site = _write(partial, bundle, chosen, described, proof, webgpu=webgpu)
            _rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise StorageUnavailable(f"cannot write {folder}: {error.strerror or error}", hint=_ELSEWHERE) from error
    return Site(folder=folder, variants=tuple(one.id for one in chosen), remarks=tuple(remarks), **site)


def _write(
    folder: Path, bundle: Bundle, variants: Sequence[Variant], task: dict[str, Any], proof: Proof, *, webgpu: bool
) -> dict[str, int]:
    """Write all files; return their sizes by what they are."""
    for own in sorted(OWN.iterdir()):
        shutil.copyfile(own, folder / own.name)
    shutil.copyfile(SESSION, folder / SESSION.name)
    (folder / "ort").mkdir()
    runtime = packages.unpack(packages.RUNTIME, folder / "ort")
    if webgpu:
        runtime += packages.unpack(packages.WITH_WEBGPU, folder / "ort")
    model = [
        _copy(bundle, ref.file, ref.sha256, bundle.path(ref), folder / "model")
        for one in variants
        for ref in one.files()
    ]
    if task["kind"] == "text":
        (folder / "tokenizers").mkdir()
        runtime += packages.unpack(packages.TOKENIZERS, folder / "tokenizers")
        tokenizer = task_of(bundle).files["tokenizer"]
        shutil.copyfile(tokenizer, folder / "model" / "tokenizer.json")
        model.append(folder / "model" / "tokenizer.json")
    (folder / "proof.bin").write_bytes(proof.data)
    (folder / "proof.json").write_text(plain_json.write(proof.described), encoding="utf-8")
    described = {
        "name": bundle.name,
        "about": _about(task, bundle.signature),
        "kit": __version__,
        "runtime": packages.RUNTIME.version,
        "webgpu": webgpu,
        "task": task,
        "variants": [
            _variant(one, proof.promises[one.id], is_ready=isinstance(bundle, ReadyModel)) for one in variants
        ],
        "files": f"Model {size(packages.size_of(model))}, runtime {size(packages.size_of(runtime[:3]))}",
    }
    (folder / "app.webmanifest").write_text(json.dumps(_app(bundle.name)), encoding="utf-8")
    hashes = {one: files.sha256(folder / one) for one in _files(folder) if one != _WORKER}
    (folder / DESCRIPTION).write_text(plain_json.write(described | {"hashes": hashes}), encoding="utf-8")
    later = {f"model/{ref.file}" for one in variants[1:] for ref in one.files()} - {
        f"model/{ref.file}" for ref in variants[0].files()
    }
    _describe_worker(folder, later)
    whole = [folder / one for one in _files(folder)]
    runtime_bytes, model_bytes = packages.size_of(runtime), packages.size_of(model)
    proof_bytes = packages.size_of([folder / "proof.bin", folder / "proof.json"])
    page_bytes = packages.size_of(whole) - runtime_bytes - model_bytes - proof_bytes
    return {"page_bytes": page_bytes, "runtime_bytes": runtime_bytes, "model_bytes": model_bytes}


def _describe_worker(folder: Path, later: set[str]) -> None:
    """Tell the service worker what it keeps at once: not what is fetched when somebody asks for it, such as another variant."""
    path = folder / _WORKER
    names = _files(folder)
    digest = hashlib.sha256("".join(files.sha256(folder / one) for one in names).encode()).hexdigest()
    asked_for = {*later, *(one for one in names if one.startswith(_LATER) or _GPU in one), _WORKER}
    kept = ["./", *(one for one in names if one not in asked_for)]
    text = path.read_text(encoding="utf-8")
    text = text.replace("@VERSION@", digest[:16]).replace('"@FILES@"', json.dumps(kept))
    path.write_text(text, encoding="utf-8")


def _files(folder: Path) -> list[str]:
    return sorted(one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file())


def _copy(bundle: Bundle, name: str, sha256: str, source: Path, folder: Path) -> Path:
    """Copy a file of a bundle; what was copied is hashed, so that no change in between goes unseen."""
    folder.mkdir(exist_ok=True)
    target = folder / name
    shutil.copyfile(source, target)
    if files.sha256(target) != sha256:
        raise BundleInvalid(f"{source} was altered: it is not what its manifest says", hint=f"kit verify {bundle.name}")
    return target


def _variant(variant: Variant, promise: Mapping[str, Any], *, is_ready: bool) -> dict[str, Any]:
    return {
        "id": variant.id,
        "precision": variant.precision.value,
        "graph": f"model/{variant.graph.file}",
        "data": {one.file: f"model/{one.file}" for one in variant.data},
        "size": size(variant.size_bytes),
        "sha256": variant.graph.sha256,
        "promise": _held_to(variant, promise, is_ready=is_ready),
    }


def _held_to(variant: Variant, promise: Mapping[str, Any], *, is_ready: bool) -> dict[str, Any]:
    """Return what the page holds a variant to: the bars of kit.metrics.fidelity."""
    if is_ready:
        return {"tolerance": tolerance_of(variant.precision)}
    if variant.precision is Precision.FP32:
        return {"tolerance": fidelity.FLOAT_RTOL}
    if variant.precision is Precision.FP16:
        return {"tolerance": fidelity.HALF_RTOL}
    return {"margin": fidelity.QUANTIZED_MARGIN, "slack": fidelity.AGREEMENT_SLACK, "outputs": promise}


def _task(task: Task, bundle: Bundle, remarks: list[str]) -> dict[str, Any]:
    """Describe what people give and get; tensors, where the page does not know the task."""
    portable = getattr(task, "portable", lambda: None)()
    if portable is not None and portable["kind"] == "text" and (kind := _tokenizer_kind(task)) not in _TOKENIZERS:
        remarks.append(f"the page cannot read a tokenizer of the kind {kind}: people give it tensors")
        return {"kind": "tensors", "way_out": {"kind": "tensors"}, "inputs": _inputs(bundle)}
    if portable is None:
        if bundle.manifest.task is not None and "tensors" not in bundle.manifest.task.name:
            remarks.append(f"the page does not know the way into {task.name}: people give it tensors")
        return {"kind": "tensors", "way_out": {"kind": "tensors"}, "inputs": _inputs(bundle)}
    items = bundle.items()
    found: dict[str, Any] = dict(portable)
    if found["kind"] == "picture":
        found["draws"] = found["way_in"]["channels"] == 1
        found["example"] = _golden_picture(bundle, found) or (items.raw[0] if items and items.raw else None)
        found["way_in_tolerance"] = _TOLERANCE.get(found["way_in"]["dtype"], 1 / 255)
    else:
        found["way_in"]["tokenizer"] = "model/tokenizer.json"
        found["examples"] = [one for one in (items.raw if items else ()) if isinstance(one, str)]
        found["way_in_tolerance"] = 0.0
    return found


def _golden_picture(bundle: Bundle, task: Mapping[str, Any]) -> str | None:
    """Return the golden sample that the original was surest about as a PNG in base64; None if they hold no pictures."""
    group, way_in = bundle.golden()[0], task["way_in"]
    if way_in["dtype"] != "uint8" or group.source == SEEDED or bundle.signature.batch is None:
        return None
    scores = (group.expected or {})[task["way_out"]["output"]].reshape(bundle.signature.rows(group.inputs), -1)
    ranked = np.sort(scores.astype(np.float64), axis=1)
    surest = int((ranked[:, -1] - ranked[:, -2]).argmax())
    pixels = group.inputs[way_in["input"]][surest].reshape(way_in["dims"][1:])
    if way_in["axis"] == 0:
        pixels = np.moveaxis(pixels, 0, 2)
    if way_in["colours"] == "BGR" and way_in["channels"] == 3:
        pixels = pixels[..., ::-1]
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels).squeeze()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _tokenizer_kind(task: Task) -> str:
    """Return the kind of a tokenizer's model, such as `WordPiece`."""
    said = plain_json.read(
        task.files["tokenizer"].read_bytes(), what="tokenizer.json", most_bytes=_TOKENIZER_MOST_BYTES
    )
    return str(said["model"].get("type") or "BPE")  # old files of BPE have none


def _inputs(bundle: Bundle) -> list[dict[str, Any]]:
    """Describe the inputs of plain tensors, with the first golden sample as an example where it is short."""
    signature, group = bundle.signature, bundle.golden()[0]
    first = signature.take(group.inputs, slice(0, 1)) if signature.batch else group.inputs
    return [
        {
            "name": spec.name,
            "dtype": spec.dtype,
            "described": spec.describe(),
            "example": first[spec.name].tolist() if first[spec.name].size <= _FLAT_VALUES else [],
        }
        for spec in signature.inputs
    ]


def _about(task: Mapping[str, Any], signature: Signature) -> str:
    """Say in a sentence what the model does."""
    out = task["way_out"]
    what = {"picture": "a picture", "text": "a text"}.get(
        task["kind"], ", ".join(spec.name for spec in signature.inputs)
    )
    if out["kind"] == "classes":
        labels = out["labels"]
        shown = ", ".join(labels) if len(labels) <= 10 else f"{', '.join(labels[:3])} and {len(labels) - 3:,} more"
        return f"Tells of {what} which of {len(labels):,} classes it is: {shown}. {_WHERE}"
    result = "a vector" if out["kind"] == "vector" else ", ".join(spec.name for spec in signature.outputs)
    return f"Makes {result} of {what}. {_WHERE}"


def _app(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "short_name": name[:12],
        "start_url": "./",
        "scope": "./",
        "display": "standalone",
        "background_color": "#ffffff",
        "theme_color": "#1d5fc4",
        "icons": [{"src": "icon.svg", "sizes": "any", "type": "image/svg+xml", "purpose": "any"}],
    }


def _refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds anything that `kit web` did not write, or that was changed since."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        said = plain_json.read((folder / DESCRIPTION).read_bytes(), what=DESCRIPTION, most_bytes=_MOST_BYTES)
        known: Mapping[str, str] = said["hashes"]
        is_own = set(_files(folder)) == {*known, DESCRIPTION, _WORKER} and all(_unchanged(folder, known))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        is_own = False
    if not is_own:
        raise UsageError(
            f"{folder} was not written by kit web, or was changed since: it is left alone",
            hint="remove it, or name another: -o DIR",
        )


def _unchanged(folder: Path, known: Mapping[str, str]) -> Iterator[bool]:
    for name, sha256 in known.items():
        yield not (folder / name).is_symlink() and files.sha256(folder / name) == sha256


def _rename(partial: Path, folder: Path) -> None:
    """Give the page its name; what bore it goes when that is done, and gets it back if it cannot be."""
    if not folder.exists():
        partial.rename(folder)
        return
    old = folder.parent / files.partial_name()
    folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
