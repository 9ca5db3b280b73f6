"""Rows of tables as people keep them: CSV, JSON lines, Parquet, or plain lines of text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit.errors import BadInput
from kit.system import packages
from kit.tasks.inputs import refuse_special, stdin

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")
STDIN = "-"


def rows_of(source: Path | str) -> Iterator[dict[str, Any]]:
    """Give the rows of a file as values by column; a line of a .txt is `{"text": line}`; `-` is CSV or JSON lines on stdin.

    Raises:
        BadInput: There is no such file, it is a pipe, or it is not what its suffix says.
    """
    if str(source) == STDIN:
        content = io.BytesIO(stdin())
        try:
            yield from _of_text(io.TextIOWrapper(content, encoding="utf-8-sig").read())
        except (UnicodeDecodeError, csv.Error) as error:
            raise BadInput(f"stdin cannot be read: {error}", hint="give UTF-8: CSV or JSON lines") from error
        return
    path = Path(source)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise BadInput(f"{path} is no table", hint=f"give a file that ends in {', '.join(SUFFIXES)}")
    refuse_special(path)
    try:
        if suffix == ".parquet":
            yield from _of_parquet(path)
        else:
            yield from _of_text(path.read_text(encoding="utf-8-sig"), suffix)
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {str(path)!r}") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read: {error}", hint="save it as UTF-8") from error


def _of_text(text: str, suffix: str = "") -> Iterator[dict[str, Any]]:
    if suffix in {".jsonl", ".json"} or (not suffix and text.lstrip()[:1] in {"{", "["}):
        yield from _of_json(text)
    elif suffix == ".txt":
        yield from ({"text": line} for line in text.splitlines() if line.strip())
    else:
        reader = csv.DictReader(io.StringIO(text), delimiter="\t" if suffix == ".tsv" else ",", strict=True)
        for number, row in enumerate(reader, start=2):
            if None in row or None in row.values():
                raise BadInput(
                    f"line {number} has another number of columns than the first", hint="quote what has commas"
                )
            yield dict(row)


def _of_json(text: str) -> Iterator[dict[str, Any]]:
    """Give the objects of JSON lines, or of one list."""
    try:
        found = (
            json.loads(text) if text.lstrip().startswith("[") else map(json.loads, filter(str.strip, text.splitlines()))
        )
        for number, row in enumerate(found, start=1):
            if not isinstance(row, dict):
                raise BadInput(f"item {number} is no JSON object", hint='one object a line: {"column": value}')
            yield row
    except (ValueError, RecursionError) as error:
        raise BadInput(f"this is no JSON: {error}") from error


def _of_parquet(path: Path) -> Iterator[dict[str, Any]]:
    pyarrow: Any = packages.needed("pyarrow.parquet", distribution="pyarrow", purpose="reading Parquet", extra="table")
    from pyarrow import ArrowException

    try:
        with pyarrow.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except ArrowException as error:
        raise BadInput(f"{path} is no Parquet file: {error}") from error
