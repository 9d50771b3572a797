"""Charts of plain text: columns over time, and bars of groups.

No colour is needed to read them, and no line is wider than `width`. A value that is not zero is never drawn
as if it were: it has an eighth of a cell at least.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Final

_UP: Final = " ▁▂▃▄▅▆▇█"
_SUFFIXES: Final = ("", "k", "M", "G", "T", "P", "E", "Z", "Y")
_MIN_PLOT: Final = 10
"""Cells for the drawing itself, however long the labels are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """What a chart is drawn with.

    Attributes:
        width: Cells of a line.
        is_ascii: Whether the output can only show ASCII.
    """

    width: int
    is_ascii: bool = False

    @property
    def full(self) -> str:
        """A whole cell."""
        return "#" if self.is_ascii else "█"

    def up(self, eighths: int) -> str:
        """A cell that is filled from below."""
        if not self.is_ascii:
            return _UP[eighths]
        return " " if eighths == 0 else "#" if eighths > 4 else "."

    def down(self, eighths: int) -> str:
        """A cell that is filled from above: there are halves only."""
        if self.is_ascii:
            return " " if eighths == 0 else "#" if eighths > 4 else "'"
        return " " if eighths == 0 else "█" if eighths > 4 else "▀"

    def cut(self, text: str, width: int) -> str:
        """`text`, at most `width` cells of it; the middle is left out, as ends differ most."""
        if len(text) <= width:
            return text
        dots = "..." if self.is_ascii else "…"
        left = max(width - len(dots), 0)
        return (text[: left - left // 2] + dots + text[len(text) - left // 2 :])[:width]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """What the top and the bottom of a drawing stand for; zero lies between them or is one of them."""

    top: Decimal
    bottom: Decimal


def scale_of(values: Sequence[Decimal]) -> Scale:
    """The scale on which all of `values` can be drawn."""
    known = [value for value in values if value.is_finite()]
    return Scale(top=max([*known, Decimal(0)]), bottom=min([*known, Decimal(0)]))


def columns(
    values: Sequence[Decimal],
    ends: tuple[str, str],
    scale: Scale,
    style: Style,
    *,
    height: int = 8,
) -> list[str]:
    """Draw a column for each value, from left to right; more than fit are drawn together.

    Args:
        values: In the order of time.
        ends: Labels of the first and the last one.
        scale: Of all charts that are to be compared.
        style: What to draw with.
        height: Rows of it, beside the line at zero and the labels.
    """
    above, below = _rows(scale, height)
    marks = [short(scale.top), "0", short(scale.bottom)]
    gutter = max(len(mark) for mark in marks) + 1
    room = max(style.width - gutter, _MIN_PLOT)
    drawn = _largest_of_each(values, -(-len(values) // room))
    cell = max(min(room // max(len(drawn), 1), 8), 1)
    gap = 1 if cell > 2 else 0
    lines: list[str] = []
    for row in range(above, 0, -1):
        eighths = [_eighths(value, scale.top, above, row) for value in drawn]
        lines.append(_row("", [style.up(one) for one in eighths], cell, gap, gutter))
    rule = ("-" if style.is_ascii else "─") * (cell * len(drawn))
    lines.append(f"{'0':>{gutter - 1}} {rule}")
    for row in range(1, below + 1):
        eighths = [_eighths(value, scale.bottom, below, row) for value in drawn]
        lines.append(_row("", [style.down(one) for one in eighths], cell, gap, gutter))
    if above:
        lines[0] = f"{marks[0]:>{gutter - 1}} {lines[0][gutter:]}"
    if below:
        lines[-1] = f"{marks[2]:>{gutter - 1}} {lines[-1][gutter:]}"
    lines.append(" " * gutter + _ends(ends, cell * len(drawn), room))
    return [line.rstrip() for line in lines]


def bars(rows: Sequence[tuple[str, Decimal]], style: Style) -> list[str]:
    """Draw one bar for each (label, value), from top to bottom, with the exact value."""
    scale = scale_of([value for _, value in rows])
    texts = [_text(value, style.width // 3) for _, value in rows]
    number = max((len(text) for text in texts), default=0)
    longest = max((len(label) for label, _ in rows), default=0)
    label_width = min(
        longest, max(style.width - number - 2 - _MIN_PLOT, _MIN_PLOT), style.width // 2
    )
    room = max(style.width - label_width - number - 2, 1)
    span = scale.top - scale.bottom
    left = 0 if span == 0 else _cells(-scale.bottom, span, room)
    if scale.top > 0:
        left = min(left, room - 1)
    lines = []
    for (label, value), text in zip(rows, texts, strict=True):
        size = 0 if span == 0 or not value.is_finite() else _cells(abs(value), span, room)
        if size and value < 0:
            size = min(size, left)
            drawn = " " * (left - size) + style.full * size
        else:
            drawn = " " * left + style.full * min(size, room - left)
        lines.append(f"{style.cut(label, label_width):<{label_width}} {text:>{number}} {drawn}")
    return [line.rstrip() for line in lines]


def merged(count: int, scale: Scale, style: Style) -> int:
    """How many values each column of `columns` stands for."""
    gutter = max(len(short(scale.top)), len(short(scale.bottom)), 1) + 1
    return max(-(-count // max(style.width - gutter, _MIN_PLOT)), 1)


def short(value: Decimal) -> str:
    """About three digits, for an axis: `950`, `1.2k`, `-98.8M`."""
    with localcontext() as context:
        context.prec = 60
        size, step = abs(value), 0
        # 999.96 would be shown as 1000.
        while size >= Decimal("999.5") and step < len(_SUFFIXES) - 1:
            size, step = (size / 1000).quantize(Decimal("0.001")), step + 1
        if size >= 100 or size == size.to_integral_value():
            text = format(size.to_integral_value(), "f")
        elif size < Decimal("0.01"):
            text = f"{size:.0E}"
        else:
            text = format(size.quantize(Decimal("0.1") if size >= 1 else Decimal("0.01")), "f")
            text = text.rstrip("0").rstrip(".")
    return f"{'-' if value < 0 else ''}{text}{_SUFFIXES[step]}"


def _text(value: Decimal, width: int) -> str:
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text if len(text) <= max(width, 8) or not value.is_finite() else short(value)


def _rows(scale: Scale, height: int) -> tuple[int, int]:
    """Rows above and below zero."""
    span = scale.top - scale.bottom
    if span == 0:
        return 1, 0
    if scale.bottom == 0:
        return height, 0
    if scale.top == 0:
        return 0, height
    above = min(max(round(height * scale.top / span), 1), height - 1)
    return above, height - above


def _eighths(value: Decimal, end: Decimal, rows: int, row: int) -> int:
    """How much of a row, counted from zero, a value fills in the direction of `end`."""
    if not value.is_finite() or end == 0 or value == 0 or (value < 0) != (end < 0):
        return 0
    filled = max(round(value / end * rows * 8), 1)
    return min(max(filled - (row - 1) * 8, 0), 8)


def _cells(value: Decimal, span: Decimal, room: int) -> int:
    if value == 0:
        return 0
    return max(round(value / span * room), 1)


def _largest_of_each(values: Sequence[Decimal], size: int) -> list[Decimal]:
    if size <= 1:
        return list(values)
    parts = (values[i : i + size] for i in range(0, len(values), size))
    return [max(part, key=lambda value: abs(value) if value.is_finite() else -1) for part in parts]


def _row(mark: str, cells: Sequence[str], cell: int, gap: int, gutter: int) -> str:
    return f"{mark:>{gutter}}" + "".join(one * (cell - gap) + " " * gap for one in cells)


def _ends(ends: tuple[str, str], drawn: int, room: int) -> str:
    first, last = ends
    if first == last:
        return first[:room]
    # A drawing may be narrower than its labels.
    between = max(drawn, len(first) + len(last) + 3)
    if between > room:
        return first[:room]
    return first + last.rjust(between - len(first))
