"""The lines of Python that run a variant: with kit, and with ONNX Runtime and numpy alone."""

from __future__ import annotations

from kit.bundle import Bundle
from kit.bundle.records import Variant


def with_kit(bundle: Bundle, variant: Variant) -> str:
    """Return a program that predicts with kit, from a picture and from pixels."""
    shape = ", ".join(map(str, bundle.spec.input.shape))
    picture = "" if not bundle.spec.pipeline else '    print(engine.predict("photo.png").names)  # any picture\n'
    return (
        "import numpy as np\n"
        "import kit\n\n"
        f"with kit.load({bundle.name!r}, variant={variant.id!r}) as engine:\n"
        f"{picture}"
        f"    pixels = np.zeros((1, {shape}), np.uint8)  # raw, 0 to 255\n"
        "    found = engine.predict(pixels)\n"
        "    print(found.names, found.probabilities, found.provider)\n"
    )


def with_onnxruntime(bundle: Bundle, variant: Variant) -> str:
    """Return a program that needs onnxruntime and numpy, the variant's file and nothing of kit."""
    spec = bundle.spec
    shape = ", ".join(map(str, spec.input.shape))
    cooled = "" if spec.temperature == 1.0 else f"logits = logits / {spec.temperature}  # the model's temperature\n"
    return (
        "import numpy as np\n"
        "import onnxruntime\n\n"
        f"labels = {list(spec.labels)}\n"
        "session = onnxruntime.InferenceSession(\n"
        f'    {variant.artifact.file!r}, providers=["CPUExecutionProvider"]\n'
        ")\n"
        f"pixels = np.zeros((1, {shape}), np.uint8)  # raw, 0 to 255\n"
        f"(logits,) = session.run([{spec.output.name!r}], {{{spec.input.name!r}: pixels}})\n"
        f"{cooled}"
        "shares = np.exp(logits - logits.max(axis=1, keepdims=True))\n"
        "shares /= shares.sum(axis=1, keepdims=True)\n"
        "print(labels[shares[0].argmax()], shares[0].max())\n"
    )
