"""Rows of panels -> where each of them stands in Grafana's grid of 24 columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from grafana_foundation_sdk.models import dashboard as sdk

from grafana.builders.panel import Panel

COLUMNS: Final = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row: a title, and panels that flow from left to right below it.

    Attributes:
        title: Variables in it are expanded; empty: panels without a title above, for the top of a dashboard.
        panels: In reading order.
        repeat: Name of a variable: the row is there once for each value that is chosen.
        collapsed: Closed at first; its panels ask for nothing until it is opened.
    """

    panels: Sequence[Panel]
    title: str = ""
    repeat: str | None = None
    collapsed: bool = False


def place(rows: Sequence[Row]) -> list[sdk.Panel | sdk.RowPanel]:
    """Panels with their places and ids, which count from 1 in reading order.

    Raises:
        ValueError: A panel is wider than the grid.
    """
    placed: list[sdk.Panel | sdk.RowPanel] = []
    next_id, top = 1, 0
    for row in rows:
        header: sdk.RowPanel | None = None
        if row.title:
            header = sdk.RowPanel(
                title=row.title,
                id_val=next_id,
                collapsed=row.collapsed,
                grid_pos=sdk.GridPos(h=1, w=COLUMNS, x=0, y=top),
                panels=[],
                repeat=row.repeat,
            )
            placed.append(header)
            next_id, top = next_id + 1, top + 1
        panels, top = _flow(row.panels, next_id, top)
        next_id += len(panels)
        if header is not None and row.collapsed:
            header.panels = panels
        else:
            placed.extend(panels)
    return placed


def _flow(panels: Sequence[Panel], next_id: int, top: int) -> tuple[list[sdk.Panel], int]:
    """Panels from `top` on, in lines; a line is as high as its highest panel."""
    placed: list[sdk.Panel] = []
    left = height = 0
    for panel in panels:
        if panel.width > COLUMNS:
            raise ValueError(f"{panel.title!r} is {panel.width} columns wide; {COLUMNS} is all")
        if left + panel.width > COLUMNS:
            left, top, height = 0, top + height, 0
        place = sdk.GridPos(h=panel.height, w=panel.width, x=left, y=top)
        placed.append(panel.build(next_id + len(placed), place))
        left, height = left + panel.width, max(height, panel.height)
    return placed, top + height
