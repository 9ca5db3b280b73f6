"""The border to ONNX Runtime: whatever it raises becomes one KitError, with a hint that fits."""

from __future__ import annotations

from kit.choices import Provider
from kit.errors import BundleInvalid, KitError, MemoryShort, ProviderUnavailable, Unavailable

_NO_MEMORY = ("Failed to allocate memory", "bad_alloc", "out of memory", "bad allocation")
_RESIZED = ("computed output shape", "shape verification failed")


def of_opening(error: Exception) -> KitError:
    """Return what to raise if a model does not open."""
    if isinstance(error, KitError):
        return error
    if _is_memory(error):
        return MemoryShort(
            f"there is too little memory to open the model: {_words(error)}", hint="close other programs"
        )
    return BundleInvalid(f"ONNX Runtime does not accept the model: {_words(error)}")


def of_running(error: Exception, *, provider: Provider, rows: int) -> KitError:
    """Return what to raise if a call with `rows` samples fails."""
    if isinstance(error, KitError):
        return error
    words = _words(error)
    if any(one in words for one in _RESIZED):
        return Unavailable(
            f"the size of an output depends on the values, so that it cannot be bound: {words}", hint="use run instead"
        )
    samples = f"{rows:,} sample" + ("" if rows == 1 else "s")
    message = f"ONNX Runtime could not run {samples} on {provider}: {words}"
    if _is_memory(error):
        hint = "use a smaller batch" if rows > 1 else "use smaller inputs, or close other programs"
        return (MemoryShort if provider is Provider.CPU else ProviderUnavailable)(message, hint=hint)
    hint = "see whether the model runs at all: kit verify"
    if rows > 1:
        hint += "; if it does, use a smaller batch"
    return (BundleInvalid if provider is Provider.CPU else ProviderUnavailable)(message, hint=hint)


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(one in str(error) for one in _NO_MEMORY)


def _words(error: Exception) -> str:
    """Return the part of an ONNX Runtime message that is not its own numbering, on one line."""
    return " ".join(str(error).split(" : ", maxsplit=3)[-1].split()) or type(error).__name__
