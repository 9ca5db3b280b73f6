"""The lines of Python that run a variant: with kit, and with ONNX Runtime and numpy alone."""

from __future__ import annotations

import numpy as np

from kit.bundle import Bundle, Variant
from kit.samples import seeded
from kit.tasks.base import Task
from kit.tensors import Signature, TensorSpec

_INDENT = "    "
_SATURATING = """# Weights of 8 bits saturate on x86 CPUs without VNNI: there, and only there, give the session
# SessionOptions with add_session_config_entry("session.x64quantprecision", "1").
"""


def with_kit(bundle: Bundle, variant: Variant, *, example: str = "") -> str:
    """Return a program that runs a variant with kit; `example` is an item as Python source, empty for tensors alone."""
    asked = f"{_INDENT}print(engine.predict({example}).records())\n" if example else ""
    return (
        "import numpy as np\n"
        "import kit\n\n"
        f"with kit.load({bundle.name!r}, variant={variant.id!r}) as engine:\n"
        f"{asked}"
        f"{_inputs(bundle.signature, _INDENT)}"
        f"{_INDENT}outputs = engine.run(inputs)\n"
        f"{_INDENT}print({{name: array.shape for name, array in outputs.items()}}, engine.provider)\n"
    )


def of_task(task: Task, variant: Variant) -> str:
    """Return a program that takes what people have, such as a picture, and nothing of kit; empty if there is no short one."""
    lines = task.snippet(variant.graph.file)
    return _beside(variant) + lines if lines else ""


def with_onnxruntime(bundle: Bundle, variant: Variant) -> str:
    """Return a program that takes tensors and needs onnxruntime and numpy, the variant's files and nothing of kit."""
    signature = bundle.signature
    names = [spec.name for spec in signature.outputs]
    return (
        f"{_beside(variant)}"
        "import numpy as np\n"
        "import onnxruntime\n\n"
        "session = onnxruntime.InferenceSession(\n"
        f'{_INDENT}{variant.graph.file!r}, providers=["CPUExecutionProvider"]\n'
        ")\n"
        f"{_inputs(signature, '')}"
        f"names = {names!r}\n"
        "outputs = dict(zip(names, session.run(names, inputs)))\n"
        "for name, array in outputs.items():\n"
        f"{_INDENT}print(name, array.dtype, array.shape)\n"
    )


def _beside(variant: Variant) -> str:
    lines = [f"# {one.file} must lie beside {variant.graph.file}\n" for one in variant.data]
    if variant.quantization is not None and variant.quantization.weight_bits == 8:
        lines.append(_SATURATING)
    return "".join(lines)


def _inputs(signature: Signature, indent: str) -> str:
    sizes = signature.usual_sizes()
    drawn = seeded(signature, sizes=sizes).inputs
    lines = [f"{indent}inputs = {{  # yours in place of these\n"]
    for spec in signature.inputs:
        fill = "ones" if drawn[spec.name].size and np.all(drawn[spec.name] == 1) else "zeros"
        dtype = "bool_" if spec.dtype == "bool" else spec.dtype
        lines.append(f"{indent}{_INDENT}{spec.name!r}: np.{fill}({spec.sized(sizes)}, np.{dtype}),{_about(spec)}\n")
    return "".join([*lines, f"{indent}}}\n"])


def _about(spec: TensorSpec) -> str:
    said = [f"[{', '.join(map(str, spec.shape))}]"] if any(isinstance(size, str) for size in spec.shape) else []
    said += [f"0 to {spec.below - 1}"] if spec.below is not None else []
    return f"  # {', '.join(said)}" if said else ""
