"""The protocol's names of numpy's dtypes, which are Triton's too. Imports nothing."""

from __future__ import annotations

DATATYPES = {
    "bool": "BOOL",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
"""The protocol's names of numpy's dtypes."""
