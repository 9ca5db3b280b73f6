"""The forms of a file of answers: JSON lines, CSV, Parquet. Chunks are encoded where they are answered, and only joined here.

CSV and Parquet have a column for each value: probabilities as `p(label)`; in CSV, lists of numbers as `name[0]`, `name[1]`, ...
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from kit.errors import UsageError
from kit.system import packages, plain_json

Record = dict[str, Any]

FIRST, LAST = "file", "error"
"""Columns that every row has: which item it is, and why it has no answer."""

_ROW_GROUP_BYTES = 32 * 2**20


class Form(Protocol):
    """How answers are written. Made in every worker; `columns_of` comes first."""

    suffix: str

    def columns_of(self, template: Record) -> None:
        """Learn from one answer which columns there are."""

    def head(self) -> bytes:
        """Return what stands before all answers."""

    def encode(self, records: Sequence[Record]) -> bytes:
        """Return answers so that they can be appended to others."""

    def finish(self, written: Path, target: Path, about: Mapping[str, Any]) -> Path:
        """Return the file that is to have the output's name: `written`, or one made of it at `target`."""


class JsonLines:
    """An object on each line."""

    suffix = ".jsonl"

    def columns_of(self, template: Record) -> None:
        """Need nothing."""

    def head(self) -> bytes:
        """Return nothing."""
        return b""

    def encode(self, records: Sequence[Record]) -> bytes:
        """Return the lines of records."""
        return "".join(plain_json.write(record) + "\n" for record in records).encode(errors="backslashreplace")

    def finish(self, written: Path, target: Path, about: Mapping[str, Any]) -> Path:  # noqa: ARG002 - the protocol's
        """Return what was written: it is whole."""
        return written


class Csv:
    """A line each, with the names of the columns first."""

    suffix = ".csv"

    def __init__(self) -> None:
        self._columns: dict[str, None] = {}  # in order, and quickly looked up where they are a thousand

    def columns_of(self, template: Record) -> None:
        """Take the columns of an answer."""
        self._columns = dict.fromkeys([FIRST, *_flat(template, lists=True), LAST])

    def head(self) -> bytes:
        """Return the line of names."""
        return _csv_line(list(self._columns))

    def encode(self, records: Sequence[Record]) -> bytes:
        """Return a line for each record; what an answer lacks is an empty cell.

        Raises:
            UsageError: An answer has columns that the first one had not: lists of several lengths.
        """
        lines = []
        for record in records:
            cells = _flat(record, lists=True)
            strange = next((name for name in cells if name not in self._columns), None)
            if strange is not None:
                raise UsageError(
                    f"the answers differ in size, and a table cannot hold {strange!r}", hint="write .jsonl or .parquet"
                )
            lines.append(_csv_line([cells.get(name, "") for name in self._columns]))
        return b"".join(lines)

    def finish(self, written: Path, target: Path, about: Mapping[str, Any]) -> Path:  # noqa: ARG002 - the protocol's
        """Return what was written: it is whole."""
        return written


class Parquet:
    """Columns with types, compressed; needs pyarrow. Until all is answered the file is a row of Arrow streams."""

    suffix = ".parquet"

    def __init__(self) -> None:
        self._arrow: Any = packages.needed("pyarrow", distribution="pyarrow", purpose="writing Parquet", extra="table")
        self._schema: Any = None

    def columns_of(self, template: Record) -> None:
        """Take columns and types of an answer: floats with 32 bits, as models give them."""
        arrow = self._arrow
        fields = [arrow.field(FIRST, arrow.string())]
        fields += [arrow.field(name, self._type(value)) for name, value in _flat(template, lists=False).items()]
        self._schema = arrow.schema([*fields, arrow.field(LAST, arrow.string())])

    def head(self) -> bytes:
        """Return nothing."""
        return b""

    def encode(self, records: Sequence[Record]) -> bytes:
        """Return a whole Arrow stream of records."""
        arrow = self._arrow
        rows = [_flat(record, lists=False) for record in records]
        columns = [arrow.array([row.get(field.name) for row in rows], field.type) for field in self._schema]
        sink = arrow.BufferOutputStream()
        with arrow.ipc.new_stream(sink, self._schema) as stream:
            stream.write_batch(arrow.record_batch(columns, schema=self._schema))
        return bytes(sink.getvalue())

    def finish(self, written: Path, target: Path, about: Mapping[str, Any]) -> Path:
        """Write the Parquet file, a row group at a time, with what answered in its metadata."""
        from pyarrow import parquet

        schema = self._schema.with_metadata({"kit": json.dumps(about)})
        with written.open("rb") as source, parquet.ParquetWriter(target, schema, compression="zstd") as writer:
            waiting, held = [], 0
            for batch in self._batches(source):
                waiting.append(batch)
                held += batch.nbytes
                if held >= _ROW_GROUP_BYTES:
                    writer.write_table(self._arrow.Table.from_batches(waiting).replace_schema_metadata(schema.metadata))
                    waiting, held = [], 0
            if waiting:
                writer.write_table(self._arrow.Table.from_batches(waiting).replace_schema_metadata(schema.metadata))
        return target

    def _batches(self, source: BinaryIO) -> Iterator[Any]:
        size = os.fstat(source.fileno()).st_size
        while source.tell() < size:
            with self._arrow.ipc.open_stream(source) as stream:
                yield from stream

    def _type(self, value: Any) -> Any:
        arrow = self._arrow
        if isinstance(value, list):
            return arrow.list_(self._type(value[0]) if value else arrow.float32())
        known = {bool: arrow.bool_(), int: arrow.int64(), float: arrow.float32(), str: arrow.string()}
        return known.get(type(value), arrow.string())


FORMS = {one.suffix: one for one in (JsonLines, Csv, Parquet)}


def form_of(output: Path) -> Form:
    """Return the form that a file's ending stands for.

    Raises:
        UsageError: There is no such form.
        PackageMissing: Parquet needs pyarrow.
    """
    made = FORMS.get(output.suffix.lower())
    if made is None:
        raise UsageError(
            f"answers are written as {', '.join(FORMS)} or .npz, not as {output.suffix or output.name}",
            hint=f"-o {output.stem or 'answers'}.csv",
        )
    form: Form = made()
    return form


def _flat(record: Record, *, lists: bool) -> Record:
    cells: Record = {}
    for name, value in record.items():
        if isinstance(value, dict):
            short = "p" if name == "probabilities" else name
            cells |= {f"{short}({label})": one for label, one in value.items()}
        elif lists and isinstance(value, list):
            if value and not isinstance(value[0], list):
                cells |= {f"{name}[{place}]": one for place, one in enumerate(value)}
            else:
                cells[name] = plain_json.write(value)
        else:
            cells[name] = value
    return cells


def _csv_line(cells: Sequence[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([f"{one:.7g}" if isinstance(one, float) else one for one in cells])
    return text.getvalue().encode(errors="backslashreplace")
