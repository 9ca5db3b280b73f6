"""A .pt2 file before torch reads it: what would run code of its own is found in its entries, and refused.

check(Path("model.pt2"))
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sympy
import torch
from torch.export.pt2_archive import constants
from torch.utils._sympy import functions

from kit.errors import UsageError

_PICKLED = (constants.CUSTOM_OBJ_FILENAME_PREFIX, constants.OPAQUE_OBJ_FILENAME_PREFIX)
# Keys of torch's descriptions of structures whose values name modules, which torch imports.
_IMPORTED = frozenset({"default_factory_module", "__enum__"})
_TEXT = re.compile(r"[\w.+-]*")
_NODES = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Constant, ast.Tuple, ast.Load, ast.Compare, ast.BoolOp),
    *(ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.cmpop, ast.boolop),
)


def check(path: Path) -> None:
    """Look into each entry, as torch's own reader sees it and as zipfile does, which torch takes for older files.

    Raises:
        UsageError: An entry is compiled code, an object in a pickle, or a size that is no arithmetic.
    """
    for name, content in _entries(path):
        problem = _problem(name, content)
        if problem:
            raise UsageError(
                f"{path.name} may hold code, which kit does not run: {problem}",
                hint="where you trust it, open it in a function of yours, and name that as package.module:function",
            )


def _entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield names and, of those in JSON, contents; what a reader cannot read is empty, for torch cannot either."""
    with contextlib.suppress(RuntimeError):
        reader = torch._C.PyTorchFileReader(str(path))  # noqa: SLF001 - the reader that torch.export.load uses
        for name in reader.get_all_records():
            yield name, _read(reader.get_record, name)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name, _read(archive.read, name)


def _read(read: Callable[[str], bytes], name: str) -> bytes:
    if not _is_json(name):
        return b""
    try:
        return read(name)
    except (RuntimeError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return b""


def _is_json(name: str) -> bool:
    return name.endswith(".json") or constants.MODELS_DIR in name


def _problem(name: str, content: bytes) -> str:
    if constants.AOTINDUCTOR_DIR in name:
        return f"{name} is compiled"
    if not _is_json(name):
        return ""
    try:
        pairs = list(_pairs(json.loads(content)))
    except ValueError:
        return ""  # torch will say so
    except RecursionError:  # torch may still read it: what cannot be looked through is not opened
        return f"{name} is nested too deep"
    for key, value in pairs:
        if key == "path_name" and str(value).startswith(_PICKLED):
            return f"{value} is an object in a pickle"
        if key in _IMPORTED:
            return f"{name} has modules imported ({key})"
        if key == "expr_str" and not _is_arithmetic(value):
            return f"{name} has a size that is no arithmetic"
    return ""


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of JSON, of JSON in its strings too."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield key, part
            yield from _pairs(part)
    elif isinstance(value, list):
        for part in value:
            yield from _pairs(part)
    elif isinstance(value, str) and value.lstrip()[:1] in {"{", "[", '"'}:
        try:
            inside = json.loads(value)
        except ValueError:
            return
        yield from _pairs(inside)


def _is_arithmetic(text: Any) -> bool:
    """Whether a size is built of numbers, symbols and sympy's classes alone: torch has sympy evaluate it as Python."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, TypeError, RecursionError):
        return False
    return all(isinstance(node, _NODES) for node in nodes) and all(
        isinstance(node.func, ast.Name) and _is_symbolic(node.func.id)
        if isinstance(node, ast.Call)
        else not isinstance(node, ast.Constant) or _is_plain(node.value)
        for node in nodes
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return _TEXT.fullmatch(value) is not None
    return value is None or isinstance(value, (bool, int, float))


@functools.cache
def _is_symbolic(name: str) -> bool:
    found = getattr(functions, name, None) or getattr(sympy, name, None)
    return isinstance(found, type) and issubclass(found, sympy.Basic)
