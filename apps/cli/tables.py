"""Tables that fit the terminal: no word is ever broken, and no name or verdict cut.

Where there is too little room, columns that can be spared are left out and named below the table; then cells are broken where
they may be; at last the columns of each row stand below each other. Files and pipes get all columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from apps.cli.lines import say
from kit.report.words import plain

_GAP, _EDGES = 3, 2  # characters between two columns, and on both sides of all

Cell = str | Text
"""A str is shown as it is, whatever it holds; only a Text has styles. An end of line in a Text is where it may be broken."""


def literal(cell: Cell) -> Text:
    """Return a cell as text that can be printed: what a str holds is neither markup nor an escape sequence."""
    return Text(plain(cell)) if isinstance(cell, str) else cell


def styled(text: str, style: str) -> Text:
    """Return words in a style of rich's, such as `red`."""
    return Text(plain(text), style=style)


def breakable(*parts: str) -> Text:
    """Return a cell that may be broken between its parts, and nowhere else."""
    return Text("\n".join(plain(part) for part in parts if part))


@dataclass(frozen=True)
class _Layout:
    """Columns by their place, and whether cells are broken where they may be."""

    places: Sequence[int]
    breaks: bool
    left_out: Sequence[str] = ()


@dataclass(kw_only=True)
class Rows:
    """Rows of cells.

    Attributes:
        headers: Of the columns; the first names a row. An end of line is where one may be broken.
        left: Headers of columns of words; others hold figures.
        wraps: Headers of columns of sentences, which may take several lines.
        spare: Headers of columns that are left out for want of room, the first one first.
        needed: Headers of columns that are left out when even broken cells take too much, the first one first.
        ruled: Numbers of rows that a line stands above.
        styles: Of whole rows, by their number.
    """

    headers: tuple[str, ...]
    left: tuple[str, ...] = ()
    wraps: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    ruled: set[int] = field(default_factory=set)
    styles: dict[int, str] = field(default_factory=dict)

    def add(self, *cells: Cell, style: str = "") -> None:
        """Add a row, in a style of rich's if one is given."""
        if style:
            self.styles[len(self.rows)] = style
        self.rows.append(cells)

    def rule(self) -> None:
        """Draw a line above the next row."""
        self.ruled.add(len(self.rows))

    def show(self, console: Console) -> None:
        """Print them, and which columns had no room."""
        kept = [place for place, header in enumerate(self.headers) if place == 0 or self._says_something(place, header)]
        for layout in self._layouts(kept):
            if self._width(layout) <= console.width:
                layout = self._filled(layout, kept, console.width)  # noqa: PLW2901 - the same one, fuller
                self._side_by_side(console, layout)
                if layout.left_out:
                    missing = ", ".join(" ".join(header.split()) for header in layout.left_out)
                    say(console, f"For want of room without: {missing}.")
                return
        self._stacked(console, kept)

    def _layouts(self, kept: Sequence[int]) -> Iterator[_Layout]:
        here = [self.headers[place] for place in kept]
        spare, needed = ([one for one in names if one in here] for names in (self.spare, self.needed))
        for breaks, order, least in ((False, spare, 0), (True, spare, 0), (True, [*spare, *needed], len(spare) + 1)):
            for count in range(least, len(order) + 1):
                yield self._layout(kept, order[:count], breaks=breaks)

    def _layout(self, kept: Sequence[int], left_out: Sequence[str], *, breaks: bool) -> _Layout:
        shown = [place for place in kept if self.headers[place] not in left_out]
        return _Layout(shown, breaks, [self.headers[place] for place in kept if place not in shown])

    def _filled(self, layout: _Layout, kept: Sequence[int], width: int) -> _Layout:
        """Put back columns that have room after all, the most telling ones first."""
        for header in reversed((*self.spare, *self.needed)):
            if header in layout.left_out:
                others = [one for one in layout.left_out if one != header]
                fuller = self._layout(kept, others, breaks=layout.breaks)
                layout = fuller if self._width(fuller) <= width else layout
        return layout

    def _says_something(self, place: int, header: str) -> bool:
        return header in self.headers[:1] or any(row[place] for row in self.rows)

    def _width(self, layout: _Layout) -> int:
        widths = [self._least_width(place, breaks=layout.breaks) + _GAP for place in layout.places]
        return sum(widths) - _GAP + _EDGES

    def _least_width(self, place: int, *, breaks: bool) -> int:
        cells = [self._cell(row[place], breaks=breaks) for row in self.rows]
        lines = [line for cell in (self._header(place, breaks=breaks), *cells) for line in cell.plain.split("\n")]
        if self.headers[place] in self.wraps:
            lines = [word for line in lines for word in line.split()]
        return max((Text(line).cell_len for line in lines), default=0)

    def _header(self, place: int, *, breaks: bool) -> Text:
        return self._cell(breakable(*self.headers[place].split("\n")), breaks=breaks)

    def _cell(self, cell: Cell, *, breaks: bool) -> Text:
        text = literal(cell)
        return text if breaks or "\n" not in text.plain else Text(" ").join(text.split("\n"))

    def _side_by_side(self, console: Console, layout: _Layout) -> None:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        for place in layout.places:
            header = self.headers[place]
            table.add_column(
                self._header(place, breaks=layout.breaks),
                justify="left" if header in {*self.left, *self.wraps} else "right",
                no_wrap=header not in self.wraps,
                min_width=self._least_width(place, breaks=layout.breaks),
            )
        for number, row in enumerate(self.rows):
            if number in self.ruled and number:
                table.add_section()
            cells = (self._cell(row[place], breaks=layout.breaks) for place in layout.places)
            table.add_row(*cells, style=self.styles.get(number, ""))
        console.print(table)

    def _stacked(self, console: Console, kept: Sequence[int]) -> None:
        named = [self._header(place, breaks=False) for place in range(len(self.headers))]
        width = max(named[place].cell_len for place in kept[1:]) + 2 if kept[1:] else 0
        console.print()
        for number, row in enumerate(self.rows):
            style = self.styles.get(number, "")
            if row[0]:
                say(console, Text.assemble(literal(row[0]), style=f"bold {style}".strip()), indent=2)
            for place in kept[1:]:
                if row[place]:
                    gap = " " * (width - named[place].cell_len)
                    cell = Text.assemble(self._cell(row[place], breaks=False), style=style)
                    say(console, Text.assemble("  ", named[place], gap, cell), indent=width + 2)
        console.print()


def pairs(console: Console, rows: Sequence[tuple[str, Cell]]) -> None:
    """Print named facts below each other; long ones are wrapped between words."""
    width = max((literal(name).cell_len for name, _ in rows), default=0) + 2
    for name, text in rows:
        shown = literal(name)
        gap = " " * (width - shown.cell_len)
        say(console, Text.assemble((shown.plain, "bold"), gap, literal(text)), indent=width)
