"""Draws a picture from text: `python docs/draw.py SOURCE.txt TARGET.svg`.

The source is a picture of box-drawing characters. Boxes with round corners (╭╮╰╯) are AIVO's own parts, boxes with
square corners (┌┐└┘) are those of others. The first line of text in a box is its title.

Knows nothing of what the picture shows.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

# Pixels of a character's cell; the proportions are those of common fixed-width fonts.
CELL_WIDTH, CELL_HEIGHT = 9, 19
MARGIN = 14
# The sides of a cell that a character's lines lead to.
UP, RIGHT, DOWN, LEFT = (0, -1), (1, 0), (0, 1), (-1, 0)
LINES = {
    "─": (LEFT, RIGHT),
    "│": (UP, DOWN),
    "├": (UP, DOWN, RIGHT),
    "┤": (UP, DOWN, LEFT),
    "┬": (LEFT, RIGHT, DOWN),
    "┴": (LEFT, RIGHT, UP),
    "┼": (UP, RIGHT, DOWN, LEFT),
    "┌": (DOWN, RIGHT),
    "┐": (DOWN, LEFT),
    "└": (UP, RIGHT),
    "┘": (UP, LEFT),
}
ARROWS = {"▲": UP, "▶": RIGHT, "▼": DOWN, "◄": LEFT}
# By the corner at the top left: those at the top right, bottom left and bottom right.
CORNERS = {"╭": ("╮", "╰", "╯"), "┌": ("┐", "└", "┘")}
STYLE = """
  .page { fill: #ffffff }
  .own { fill: #e3edfb; stroke: #2c5c9c }
  .other { fill: #f1f1ee; stroke: #77776f }
  .line { stroke: #44484f; stroke-width: 1.5; stroke-linecap: square }
  .head { fill: #44484f }
  text { font: 14px system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2328 }
  .title { font-weight: bold }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A closed rectangle, by the columns and rows of its border."""

    left: int
    top: int
    right: int
    bottom: int
    own: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Text without a gap of two blanks or more; it starts at a column of a row."""

    column: int
    row: int
    text: str


class Grid:
    """The characters of a picture; outside of it are blanks."""

    def __init__(self, text: str) -> None:
        self.rows = text.splitlines()
        self.width = max(map(len, self.rows))
        self.height = len(self.rows)

    def at(self, column: int, row: int) -> str:
        """The character of a cell."""
        inside = 0 <= row < self.height and 0 <= column < len(self.rows[row])
        return self.rows[row][column] if inside else " "

    def cells(self) -> Iterator[tuple[int, int, str]]:
        """Column, row and character of every cell that is not blank."""
        for row, line in enumerate(self.rows):
            yield from ((column, row, character) for column, character in enumerate(line) if character != " ")


def draw(text: str) -> str:
    """Returns the picture as SVG.

    Raises:
        ValueError: If a box is not closed.
    """
    grid = Grid(text)
    boxes = list(find_boxes(grid))
    border = {cell for box in boxes for cell in _border(box)}
    width, height = grid.width * CELL_WIDTH + 2 * MARGIN, grid.height * CELL_HEIGHT + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}" rx="8"/>',
        *map(_box, boxes),
        *_lines(grid, border),
        *_heads(grid),
        *(_words(words, title=_is_title(words, boxes)) for words in find_words(grid)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def find_boxes(grid: Grid) -> Iterator[Box]:
    """All boxes, from the top.

    Raises:
        ValueError: If one is not closed.
    """
    for column, row, character in grid.cells():
        # A line may turn with a square corner too; it is no box, as it leads to no corners of a box.
        if character in CORNERS:
            top_right, bottom_left, bottom_right = CORNERS[character]
            right = _run(grid, column, row, RIGHT, until=top_right)
            bottom = _run(grid, column, row, DOWN, until=bottom_left)
            if (
                right is not None
                and bottom is not None
                and _run(grid, column, bottom, RIGHT, until=bottom_right) == right
                and _run(grid, right, row, DOWN, until=bottom_right) == bottom
            ):
                yield Box(left=column, top=row, right=right, bottom=bottom, own=character == "╭")
            elif character == "╭":
                raise ValueError(f"the box that begins in row {row + 1}, column {column + 1} is not closed")


def find_words(grid: Grid) -> Iterator[Words]:
    """All text, in pieces that are drawn at once."""
    shapes = {*LINES, *ARROWS, *"╭╮╰╯"}
    for row, line in enumerate(grid.rows):
        column = 0
        for is_shape, characters in groupby(line, key=lambda character: character in shapes):
            run = "".join(characters)
            if not is_shape:
                yield from _pieces(run, column, row)
            column += len(run)


def _pieces(run: str, column: int, row: int) -> Iterator[Words]:
    offset = 0
    for piece in run.split("  "):
        if text := piece.strip():
            start = column + offset + len(piece) - len(piece.lstrip())
            yield Words(column=start, row=row, text=text)
        offset += len(piece) + 2


def _run(grid: Grid, column: int, row: int, way: tuple[int, int], *, until: str) -> int | None:
    """Follows a border to its corner; returns the corner's column or row, None if the border ends before."""
    along = "─┬┴┼▲▼" if way == RIGHT else "│├┤┼◄▶"
    while True:
        column, row = column + way[0], row + way[1]
        character = grid.at(column, row)
        if character == until:
            return column if way == RIGHT else row
        if character not in along:
            return None


def _border(box: Box) -> Iterator[tuple[int, int]]:
    for column in range(box.left, box.right + 1):
        yield from ((column, box.top), (column, box.bottom))
    for row in range(box.top, box.bottom + 1):
        yield from ((box.left, row), (box.right, row))


def _is_title(words: Words, boxes: list[Box]) -> bool:
    return any(words.row == box.top + 1 and box.left < words.column < box.right for box in boxes)


def _centre(column: int, row: int) -> tuple[float, float]:
    return MARGIN + (column + 0.5) * CELL_WIDTH, MARGIN + (row + 0.5) * CELL_HEIGHT


def _box(box: Box) -> str:
    (x, y), (right, bottom) = _centre(box.left, box.top), _centre(box.right, box.bottom)
    kind, radius = ("own", 9) if box.own else ("other", 2)
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{right - x}" height="{bottom - y}" rx="{radius}"/>'


def _lines(grid: Grid, border: set[tuple[int, int]]) -> Iterator[str]:
    """The lines between boxes; a border is drawn with its box, except for what leads away from it."""
    for column, row, character in grid.cells():
        ways = LINES.get(character, ())
        if character in ARROWS:
            back = ARROWS[character]
            ways = ((-back[0], -back[1]),)
        x, y = _centre(column, row)
        for across, down in ways:
            if (column, row) in border and (column + across, row + down) in border:
                continue
            if (column, row) in border and grid.at(column + across, row + down) == " ":
                continue
            end_x, end_y = x + across * CELL_WIDTH / 2, y + down * CELL_HEIGHT / 2
            yield f'<line class="line" x1="{x}" y1="{y}" x2="{end_x}" y2="{end_y}"/>'


def _heads(grid: Grid) -> Iterator[str]:
    """Arrow heads, whose tips touch the border that they stand on."""
    for column, row, character in grid.cells():
        if character in ARROWS:
            across, down = ARROWS[character]
            x, y = _centre(column, row)
            base_x, base_y = x - across * 9, y - down * 9
            wing = f"{base_x + down * 5},{base_y + across * 5} {base_x - down * 5},{base_y - across * 5}"
            yield f'<polygon class="head" points="{x},{y} {wing}"/>'


def _words(words: Words, *, title: bool) -> str:
    x, baseline = MARGIN + words.column * CELL_WIDTH, MARGIN + (words.row + 0.74) * CELL_HEIGHT
    kind = ' class="title"' if title else ""
    return f'<text{kind} x="{x}" y="{baseline:.1f}">{escape(words.text)}</text>'


def main() -> None:
    """Reads the source and writes the target that the command line names."""
    source, target = map(Path, sys.argv[1:])
    target.write_text(draw(source.read_text()))


if __name__ == "__main__":
    main()
