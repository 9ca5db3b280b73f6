"""Rows of tables as people keep them: CSV, JSON lines, Parquet, or plain lines of text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from kit.errors import BadInput
from kit.system import packages
from kit.tasks.inputs import refuse_special, stdin

SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt")
STDIN = "-"

_BLOCK = 2**20
_ODD = "surrogateescape"


Row = dict[str, Any] | BadInput


def rows_of(source: Path | str) -> Iterator[dict[str, Any]]:
    """Give the rows of a file as values by column; a line of a .txt is `{"text": line}`; `-` is CSV or JSON lines on stdin.

    A file is read as it is needed, a list in JSON at once.

    Raises:
        BadInput: There is no such file, it is a pipe, or it is not what its suffix says.
    """
    for row in rows_or_errors(source):
        if isinstance(row, BadInput):
            raise row
        yield row


def rows_or_errors(source: Path | str) -> Iterator[Row]:
    """Give rows as `rows_of` does; in place of a line that is none, the error.

    Raises:
        BadInput: What follows cannot be read at all.
    """
    if str(source) == STDIN:
        try:
            piped = io.TextIOWrapper(io.BytesIO(stdin()), encoding="utf-8-sig", errors=_ODD, newline="")
            yield from _of_text(piped, _guessed(piped))
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
            with path.open(encoding="utf-8-sig", errors=_ODD, newline="") as text:
                yield from _of_text(text, suffix)
    except FileNotFoundError as error:
        raise BadInput(f"there is no file {str(path)!r}", hint="look at the path") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path} cannot be read: {error}", hint="save it as UTF-8") from error


def count_rows(path: Path) -> int | None:
    """Return about how many rows a file has, without reading them as such; None if that cannot be known.

    Lines are counted: a quoted line break in a CSV file counts as one more row.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            parquet: Any = packages.needed(
                "pyarrow.parquet", distribution="pyarrow", purpose="reading Parquet", extra="table"
            )
            return int(parquet.read_metadata(path).num_rows)
        if suffix not in SUFFIXES:
            return None
        with path.open("rb") as file:
            lines = sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b""))
    except (OSError, ValueError):
        return None
    return max(lines - 1, 1) if suffix in {".csv", ".tsv"} else max(lines, 1)


def _guessed(text: TextIO) -> str:
    begin = next((line for line in text if line.strip()), "").lstrip()[:1]
    text.seek(0)
    return ".json" if begin in {"{", "["} else ".csv"


def _of_text(text: TextIO, suffix: str) -> Iterator[Row]:
    if suffix in {".jsonl", ".json"}:
        yield from _of_json(text)
    elif suffix == ".txt":
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield _no_utf8(number) if _is_odd(line) else {"text": line.rstrip("\r\n")}
    else:
        yield from _of_csv(csv.DictReader(text, delimiter="\t" if suffix == ".tsv" else ",", strict=True))


def _of_csv(reader: csv.DictReader[str]) -> Iterator[Row]:
    if any(map(_is_odd, reader.fieldnames or ())):
        raise BadInput("the names of the columns are no UTF-8", hint="save it as UTF-8")
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:  # the next line may be one again
            yield BadInput(f"line {reader.line_num} cannot be read: {error}", hint="quote what has commas or quotes")
            continue
        if row is None:
            return
        if None in row or None in row.values():
            yield BadInput(
                f"line {reader.line_num} has another number of columns than the first", hint="quote what has commas"
            )
        elif any(map(_is_odd, row.values())):
            yield _no_utf8(reader.line_num)
        else:
            yield dict(row)


def _is_odd(text: str) -> bool:
    """Whether a text holds bytes that were no UTF-8."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def _no_utf8(line: int) -> BadInput:
    return BadInput(f"line {line} is no UTF-8", hint="save it as UTF-8")


def _of_json(text: TextIO) -> Iterator[Row]:
    begin = next((line for line in text if line.strip()), "")
    text.seek(0)
    if begin.lstrip().startswith("["):
        try:
            found = json.loads(text.read())
        except (ValueError, RecursionError) as error:
            raise BadInput(f"this is no JSON: {error}") from error
        yield from (_object(row, number) for number, row in enumerate(found, start=1))
        return
    lines = (line for line in text if line.strip())
    for number, line in enumerate(lines, start=1):
        if _is_odd(line):
            yield _no_utf8(number)
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield BadInput(f"item {number} is no JSON: {error}")
        else:
            yield _object(row, number)


def _object(row: Any, number: int) -> Row:
    if isinstance(row, dict):
        return row
    return BadInput(f"item {number} is no JSON object", hint='one object a line: {"column": value}')


def _of_parquet(path: Path) -> Iterator[dict[str, Any]]:
    pyarrow: Any = packages.needed("pyarrow.parquet", distribution="pyarrow", purpose="reading Parquet", extra="table")
    from pyarrow import ArrowException

    try:
        with pyarrow.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except ArrowException as error:
        raise BadInput(f"{path} is no Parquet file: {error}") from error
