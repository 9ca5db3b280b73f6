"""Tables that fit the terminal: side by side if there is room, one row after the other if not. No word is ever broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kit.report.words import plain

_GAP, _EDGES = 3, 2  # characters between two columns, and on both sides of all

Cell = str | Text
"""A str is shown as it is, whatever it holds; only a Text has styles."""


def literal(cell: Cell) -> Text:
    """Return a cell as text that can be printed: what a str holds is neither markup nor an escape sequence."""
    return Text(plain(cell)) if isinstance(cell, str) else cell


def styled(text: str, style: str) -> Text:
    """Return words in a style of rich's, such as `red`."""
    return Text(plain(text), style=style)


@dataclass(kw_only=True)
class Rows:
    """Rows of cells.

    Attributes:
        headers: Of the columns; the first names a row.
        left: Headers of columns of words; others hold figures.
        wraps: Headers of columns of sentences, which may take several lines.
        ruled: Numbers of rows that a line stands above.
    """

    headers: tuple[str, ...]
    left: tuple[str, ...] = ()
    wraps: tuple[str, ...] = ()
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    ruled: set[int] = field(default_factory=set)

    def add(self, *cells: Cell) -> None:
        """Add a row."""
        self.rows.append(cells)

    def rule(self) -> None:
        """Draw a line above the next row."""
        self.ruled.add(len(self.rows))

    def show(self, console: Console) -> None:
        """Print them."""
        kept = [place for place, header in enumerate(self.headers) if place == 0 or self._says_something(place, header)]
        fits = sum(self._least_width(place) + _GAP for place in kept) - _GAP + _EDGES <= console.width
        (self._side_by_side if fits else self._stacked)(console, kept)

    def _says_something(self, place: int, header: str) -> bool:
        """Whether a column holds anything at all; one that is empty throughout is left out."""
        return header in self.headers[:1] or any(row[place] for row in self.rows)

    def _least_width(self, place: int) -> int:
        cells = [literal(cell).plain for cell in (self.headers[place], *(row[place] for row in self.rows))]
        if self.headers[place] in self.wraps:
            cells = [word for cell in cells for word in cell.split()]
        return max((Text(cell).cell_len for cell in cells), default=0)

    def _side_by_side(self, console: Console, kept: Sequence[int]) -> None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        for place in kept:
            header = self.headers[place]
            wraps = header in self.wraps
            table.add_column(
                literal(header),
                justify="left" if header in {*self.left, *self.wraps} else "right",
                no_wrap=not wraps,
                min_width=self._least_width(place),
            )
        for number, row in enumerate(self.rows):
            if number in self.ruled and number:
                table.add_section()
            table.add_row(*(literal(row[place]) for place in kept))
        console.print(table)

    def _stacked(self, console: Console, kept: Sequence[int]) -> None:
        headers = [literal(header) for header in self.headers]
        width = max(headers[place].cell_len for place in kept)
        console.print()
        for row in self.rows:
            if row[0]:
                console.print(Text.assemble(literal(row[0]), style="bold"), soft_wrap=True)
            for place in kept[1:]:
                if row[place]:
                    gap = " " * (width - headers[place].cell_len + 2)
                    console.print(Text.assemble("  ", headers[place], gap, literal(row[place])), soft_wrap=True)
        console.print()


def pairs(console: Console, rows: Sequence[tuple[str, Cell]]) -> None:
    """Print named facts below each other; long ones are wrapped between words."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(literal(name), literal(text))
    console.print(table)
