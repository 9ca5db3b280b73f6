"""A machine on which packages are missing."""

from __future__ import annotations

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(f'{{name}} is not for deployment machines', name=name)
sys.meta_path.insert(0, Block())
"""
"""Lines of Python that make the packages in `blocked` impossible to import."""

WORKSHOP = (
    *("torch", "torchvision", "transformers", "onnx", "onnx_ir", "onnxscript", "sklearn", "safetensors", "streamlit"),
)
"""What a deployment machine does not have."""
