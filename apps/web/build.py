"""Writes the page: its own files (apps/web/site), the runtime, the model, and the proof that travels with it.

build(find("mnist-mlp"), Path("site"))     # works from any static host, without a server of its own
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apps.web.describing import TENSORS, TEXT, TOKENIZER_PATH, about, describe
from apps.web.proof import Proof, proof_of
from apps.web.trial import Trial
from kit import __version__
from kit.bundle import Bundle, Variant
from kit.choices import Precision
from kit.errors import UsageError
from kit.metrics import fidelity
from kit.ready import ReadyModel
from kit.report.format import size
from kit.runtime.browser import SESSION, packages
from kit.system import files, plain_json
from kit.tasks.registry import task_of
from kit.tasks.tokens import TOKENIZER
from kit.verify.model import tolerance_of

OWN = Path(__file__).with_name("site")
DESCRIPTION = "site.json"
_MOST_BYTES = 2**24
_RUNTIME_BYTES = 50_000_000
_WORKER = "sw.js"
_MODEL = "model"
_PROOF = ("proof.bin", "proof.json")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A page that was written.

    Attributes:
        variants: What it offers, the first one at once.
        bytes: Of the `page` itself, the `runtime` (onnxruntime-web), and the `model` (all variants, and the tokenizer).
        remarks: What it cannot do, in words.
        trial: What a browser found of it here; None if none was asked.
    """

    folder: Path
    variants: tuple[str, ...]
    bytes: dict[str, int]
    remarks: tuple[str, ...]
    trial: Trial | None


def build(
    bundle: Bundle,
    folder: Path,
    *,
    variants: Sequence[str] = (),
    webgpu: bool = True,
    check: Callable[[Path, Sequence[str]], Trial | None] = lambda _folder, _variants: None,
) -> Site:
    """Write a bundle as a page.

    Args:
        bundle: What it runs; a ready model will do.
        folder: Where; what lies there is replaced if `kit web` wrote all of it.
        variants: Which ones it offers, the first at once; none for the bundle's default.
        webgpu: Whether the larger runtime comes along, for browsers with a GPU.
        check: Given the finished page and the ids of its variants before it appears, such as apps.web.trial.tried.

    Raises:
        UsageError: Something else lies there.
        BundleInvalid: A file of the bundle is missing or was altered.
        VerifyFailed: A variant does not answer here, or in the check, as its bundle promises.
        Unavailable: onnxruntime-web cannot be had.
        StorageUnavailable: It cannot be written; nothing was.
    """
    _refuse_foreign(folder)
    chosen = [bundle.variant(one) for one in variants] or [bundle.variant()]
    task = task_of(bundle)
    described, remarks = describe(bundle, task)
    proof = proof_of(bundle, chosen, with_items=described["kind"] != TENSORS)
    model_bytes = sum(one.size_bytes for one in chosen)
    with files.folder(folder, what="the page", needed_bytes=model_bytes + _RUNTIME_BYTES) as partial:
        tokenizer = task.files[TOKENIZER] if described["kind"] == TEXT else None
        parts = _write(partial, bundle, chosen, tokenizer, webgpu=webgpu)
        _describe(partial, bundle, chosen, described, proof, parts, webgpu=webgpu)
        trial = check(partial, [one.id for one in chosen])
        page = set(_files(partial)).difference(_PROOF, *parts.values())
        sizes = {kind: _bytes_of(partial, names) for kind, names in {"page": page, **parts}.items()}
    return Site(folder=folder, variants=tuple(one.id for one in chosen), bytes=sizes, remarks=remarks, trial=trial)


def _write(
    folder: Path, bundle: Bundle, variants: Sequence[Variant], tokenizer: Path | None, *, webgpu: bool
) -> dict[str, list[str]]:
    """Copy the page's own files, the model and the runtime; return what the last two are made of."""
    for own in (*OWN.iterdir(), SESSION):
        shutil.copyfile(own, folder / own.name)
    model = {f"{_MODEL}/{ref.file}": ref for one in variants for ref in one.files()}
    for name, ref in model.items():
        bundle.copy(ref, folder / name)
    wanted = [(packages.RUNTIME, "ort")]
    wanted += [(packages.WITH_WEBGPU, "ort")] if webgpu else []
    if tokenizer is not None:
        wanted.append((packages.TOKENIZERS, "tokenizers"))
        shutil.copyfile(tokenizer, folder / TOKENIZER_PATH)
    unpacked = [one for package, place in wanted for one in packages.unpack(package, folder / place)]
    runtime = [one.relative_to(folder).as_posix() for one in unpacked]
    return {"runtime": runtime, "model": [*model, *([TOKENIZER_PATH] if tokenizer is not None else [])]}


def _describe(
    folder: Path,
    bundle: Bundle,
    variants: Sequence[Variant],
    task: dict[str, Any],
    proof: Proof,
    parts: Mapping[str, Sequence[str]],
    *,
    webgpu: bool,
) -> None:
    """Write what the page reads about itself, and what its service worker keeps."""
    (folder / "proof.bin").write_bytes(proof.data)
    (folder / "proof.json").write_text(plain_json.write(proof.described), encoding="utf-8")
    (folder / "app.webmanifest").write_text(json.dumps(_app(bundle.name)), encoding="utf-8")
    fetched = [name for name in parts["runtime"] if not _is_for_later(name)]
    described = {
        "name": bundle.name,
        "about": about(task, bundle.signature),
        "kit": __version__,
        "runtime": packages.RUNTIME.version,
        "webgpu": webgpu,
        "task": task,
        "variants": [
            _variant(one, proof.promises[one.id], is_ready=isinstance(bundle, ReadyModel)) for one in variants
        ],
        "files": f"Model {size(_bytes_of(folder, parts['model']))}, runtime {size(_bytes_of(folder, fetched))}",
        "hashes": {one: files.sha256(folder / one) for one in _files(folder) if one != _WORKER},
    }
    (folder / DESCRIPTION).write_text(plain_json.write(described), encoding="utf-8")
    first = {ref.file for ref in variants[0].files()}
    later = {f"{_MODEL}/{ref.file}" for one in variants[1:] for ref in one.files() if ref.file not in first}
    _describe_worker(folder, later)


def _describe_worker(folder: Path, later: set[str]) -> None:
    """Tell the service worker what it keeps at once: not what is fetched when somebody asks for it, such as another variant."""
    path = folder / _WORKER
    names = _files(folder)
    digest = hashlib.sha256("".join(files.sha256(folder / one) for one in names).encode()).hexdigest()
    asked_for = {*later, *filter(_is_for_later, names), _WORKER}
    kept = ["./", *(one for one in names if one not in asked_for)]
    text = path.read_text(encoding="utf-8")
    text = text.replace("@VERSION@", digest[:16]).replace('"@FILES@"', json.dumps(kept))
    path.write_text(text, encoding="utf-8")


def _is_for_later(name: str) -> bool:
    """Whether the page fetches a file only when it is asked to, or where a GPU may help."""
    return name in {*_PROOF, "ort/ort.webgpu.min.mjs"} or "asyncify" in name


def _bytes_of(folder: Path, names: Iterable[str]) -> int:
    return sum((folder / name).stat().st_size for name in names)


def _files(folder: Path) -> list[str]:
    return sorted(one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file())


def _variant(variant: Variant, promise: Mapping[str, Any], *, is_ready: bool) -> dict[str, Any]:
    return {
        "id": variant.id,
        "precision": variant.precision.value,
        "graph": f"{_MODEL}/{variant.graph.file}",
        "data": {one.file: f"{_MODEL}/{one.file}" for one in variant.data},
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
        is_own = files.holds(folder, said["hashes"], beside={DESCRIPTION, _WORKER})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        is_own = False
    if not is_own:
        raise UsageError(
            f"{folder} was not written by kit web, or was changed since: it is left alone",
            hint="remove it, or name another: -o DIR",
        )
