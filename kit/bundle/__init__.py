"""The artifact folder: the only room that knows how one is written and read.

```
artifacts/NAME/
    manifest.json             the only mutable name; replaced whole, last
    weights-1a2b3c4d.safetensors
    golden-5e6f7a8b.npz       inputs, labels and PyTorch's logits
    card-7a8b9c0d.md          the model card, where there is one
    fp32-9c0d1e2f.onnx        every other file carries part of its own sha256
```

A change writes and syncs its new files first; one `os.replace` of the manifest commits; files that no manifest names are
collected afterwards. A kill at any moment leaves the old bundle or the new one. Nothing here imports onnx, torch or
onnxruntime, and nothing is ever pickled.

`packed.py` describes the same thing as one file, for moving it.

    bundle = find("mnist-mlp")
    path = bundle.path(bundle.variant("fp32").artifact)
"""

from __future__ import annotations

from kit.bundle.contents import GoldenSamples, Manifest
from kit.bundle.lookup import available, find, is_bundle, scan, scan_packed
from kit.bundle.packed import Packed
from kit.bundle.packed import check as check_packed
from kit.bundle.packing import pack, packed_bytes, unpack
from kit.bundle.read import ROOT, Bundle, open_folder
from kit.bundle.write import (
    attach_card,
    create,
    file_ref,
    publish,
    refuse_foreign,
    refuse_packed,
    refuse_unwritable,
)

__all__ = [
    "ROOT",
    "Bundle",
    "GoldenSamples",
    "Manifest",
    "Packed",
    "attach_card",
    "available",
    "check_packed",
    "create",
    "file_ref",
    "find",
    "is_bundle",
    "open_folder",
    "pack",
    "packed_bytes",
    "publish",
    "refuse_foreign",
    "refuse_packed",
    "refuse_unwritable",
    "scan",
    "scan_packed",
    "unpack",
]
