"""Files of bundles, made and damaged on purpose."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from kit.bundle import Bundle, Staged, Variant, file_ref


def staged(folder: Path, variant: Variant, content: bytes, *, name: str = "") -> Staged:
    """A variant like another, of other bytes, waiting in a folder to be published."""
    folder.mkdir(parents=True, exist_ok=True)
    ref = file_ref(content, name or variant.id, ".onnx")
    (folder / ref.file).write_bytes(content)
    return Staged(variant=dataclasses.replace(variant, id=name or variant.id, graph=ref), folder=folder)


def overwrite(path: Path, content: bytes) -> None:
    """Damage a file that kit wrote read-only."""
    path.chmod(0o644)
    path.write_bytes(content)


def edit_manifest(bundle: Bundle, **changes: Any) -> None:
    """Change fields of a manifest as somebody with an editor would."""
    path = bundle.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
