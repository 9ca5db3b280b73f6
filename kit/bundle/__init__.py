"""The artifact folder: the only room that knows how one is written and read.

```
artifacts/NAME/
    manifest.json             the only mutable name; replaced whole, last
    weights-1a2b3c4d.safetensors
    golden-5e6f7a8b.npz       samples with the original's answers
    items-6f7a8b9c.npz        raw items and the tensors they must become
    card-7a8b9c0d.md          the model card, if there is one
    fp32-9c0d1e2f.onnx        every other file carries part of its own sha256
    fp32-0d1e2f3a.data        weights of a large model, beside its graph
```

A change writes and syncs its new files first; one `os.replace` of the manifest commits; files that no manifest names are
collected afterwards. A kill at any moment leaves the old bundle or the new one. Nothing here imports onnx, torch or
onnxruntime, and nothing is ever pickled.

`packed.py` describes the same thing as one file, for moving it.

    bundle = find("mnist-mlp")
    model = bundle.model(bundle.variant("fp32"))  # checked bytes, or the path of a large one
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kit.bundle.golden import Items
from kit.bundle.lookup import available, find, is_bundle, scan, scan_packed
from kit.bundle.manifest import FileRef, Manifest, Variant
from kit.bundle.packed import Packed
from kit.bundle.packed import check as check_packed
from kit.bundle.read import ROOT, Bundle, open_folder, renewed, with_fresh

if TYPE_CHECKING:
    from kit.bundle.packing import pack, pack_into, packed_bytes, unpack
    from kit.bundle.write import (
        Staged,
        attach,
        create,
        file_ref,
        publish,
        refuse_foreign,
        refuse_packed,
        refuse_unwritable,
        upgrade,
    )

_WRITING = {
    **dict.fromkeys(("pack", "pack_into", "packed_bytes", "unpack"), "kit.bundle.packing"),
    **dict.fromkeys(("Staged", "attach", "create", "file_ref", "publish", "upgrade"), "kit.bundle.write"),
    **dict.fromkeys(("refuse_foreign", "refuse_packed", "refuse_unwritable"), "kit.bundle.write"),
}
"""What opening a bundle does not need is imported when it is first asked for."""

__all__ = [
    "ROOT",
    "Bundle",
    "FileRef",
    "Items",
    "Manifest",
    "Packed",
    "Staged",
    "Variant",
    "attach",
    "available",
    "check_packed",
    "create",
    "file_ref",
    "find",
    "is_bundle",
    "open_folder",
    "pack",
    "pack_into",
    "packed_bytes",
    "publish",
    "refuse_foreign",
    "refuse_packed",
    "refuse_unwritable",
    "renewed",
    "scan",
    "scan_packed",
    "unpack",
    "upgrade",
    "with_fresh",
]


def __getattr__(name: str) -> Any:
    if name in _WRITING:
        return getattr(importlib.import_module(_WRITING[name]), name)
    raise AttributeError(f"module 'kit.bundle' has no attribute {name!r}")
