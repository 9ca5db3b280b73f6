"""`package.module:function` on the command line: somebody's own code that builds a module, and weights for it."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kit.errors import BadInput, UsageError
from kit.system import packages
from kit.tensors import Signature

_HINT = "it must return a torch module, or (module, example inputs)"


@dataclass(frozen=True)
class Built:
    """What a factory returned."""

    module: nn.Module
    inputs: Any = None
    signature: Signature | None = None


def build(source: str) -> Built:
    """Call a factory, `package.module:function`, found in the current folder or among the installed packages.

    It takes no arguments and returns a module, (module, example inputs) or (module, signature).

    Raises:
        UsageError: It is not there, fails, or returns something else.
    """
    place, _, function = source.partition(":")
    with _current_folder():
        found = _found(place, function)
        try:
            made = found() if not isinstance(found, nn.Module) else found
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"the factory {source} failed: {_sentence(error)}", hint="call it in Python to see where"
            ) from error
    if isinstance(made, nn.Module):
        return Built(made)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module):
        is_signature = isinstance(made[1], Signature)
        return Built(made[0], None if is_signature else made[1], made[1] if is_signature else None)
    raise UsageError(f"the factory {source} returned {type(made).__name__}", hint=_HINT)


def _found(place: str, function: str) -> Any:
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
            raise UsageError(
                f"there is no module {place!r}", hint="name one of the current folder, or of an installed package"
            ) from error
        raise UsageError(
            f"{place} needs {error.name}, which is not installed", hint=f"pip install {error.name}"
        ) from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"{place} cannot be imported: {_sentence(error)}") from error
    found: Any = module
    for part in function.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UsageError(f"{place} has no function {function!r}", hint="name a factory as package.module:function")
    return found


def _sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Let modules of the current folder be imported, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def load_weights(module: nn.Module, path: Path) -> None:
    """Copy weights from a safetensors file into a module, one by one; each must be there, and none may be left over.

    Names that share one tensor need one name in the file.

    Raises:
        UsageError: They do not fit the module, or the file is of another kind.
        BadInput: There is no such file, or it is damaged.
    """
    if path.suffix != ".safetensors":
        raise UsageError(
            f"{path.name} is no .safetensors file",
            hint='save the weights anew: safetensors.torch.save_model(module, "FILE.safetensors")',
        )
    if not path.is_file():
        raise BadInput(f"there is no file {str(path)!r}")
    safetensors = packages.needed("safetensors", distribution="safetensors", purpose="reading weights", extra="train")
    own = {name: one for name, one in module.state_dict(keep_vars=True).items() if isinstance(one, torch.Tensor)}
    try:
        with safetensors.safe_open(str(path), framework="pt") as file, torch.no_grad():
            names = list(file.keys())
            _check_names(own, names, path)
            for name in names:
                values = file.get_tensor(name)
                if values.shape != own[name].shape:
                    raise UsageError(
                        f"{path.name} does not fit the module: {name} is {tuple(values.shape)}, "
                        f"expected {tuple(own[name].shape)}"
                    )
                own[name].copy_(values)
    except (safetensors.SafetensorError, OSError) as error:
        raise BadInput(f"{path.name} is no safetensors file: {str(error).splitlines()[0]}") from error


def _check_names(own: dict[str, torch.Tensor], names: list[str], path: Path) -> None:
    unknown = [name for name in names if name not in own]
    if unknown:
        raise UsageError(f"{path.name} does not fit the module: it has no {unknown[0]} ({len(unknown)} such names)")
    given = {_place(own[name]) for name in names}
    missing = [name for name, one in own.items() if _place(one) not in given]
    if missing:
        raise UsageError(f"{path.name} does not fit the module: {missing[0]} is missing ({len(missing)} such names)")


def _place(tensor: torch.Tensor) -> tuple[int, tuple[int, ...]] | int:
    return (tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() else id(tensor)
