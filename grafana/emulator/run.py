"""A target of a dashboard, run for real: expanded as Grafana does, read from the store, made a frame."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grafana.emulator import frames
from grafana.emulator.frames import Column, Frame
from grafana.emulator.macros import expand
from grafana.emulator.time_range import Context
from receiver.store.client import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the engine answered.

    Attributes:
        sql: What it was asked.
        columns: Of the answer, also when there are no rows.
        rows: Of the answer.
        is_series: It was asked for as time series.
        ref_id: Of the target.
    """

    sql: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    is_series: bool = False
    ref_id: str = "A"

    def frame(self) -> Frame | None:
        """What the panel gets; None: nothing, there were no rows. Raises FrameError."""
        if not self.rows:
            return None
        make = frames.series if self.is_series else frames.table
        return make(self.columns, self.rows, self.ref_id)


def ask(
    store: Store,
    sql: str,
    *,
    is_series: bool = False,
    ref_id: str = "A",
    columns: Sequence[Column] = (),
) -> Answer:
    """Run a query that is expanded already; `columns`: of its answer, if they are known. Raises as `Store.query`."""
    return Answer(
        sql=sql,
        columns=columns or describe(store, sql),
        rows=store.query(sql),
        is_series=is_series,
        ref_id=ref_id,
    )


def describe(store: Store, sql: str) -> list[Column]:
    """Columns of a query's answer. Raises as `Store.query`."""
    return [Column(str(row[0]), str(row[1])) for row in store.query(f"DESCRIBE TABLE ({sql})")]


def answer(
    store: Store, target: Mapping[str, Any], context: Context, columns: Sequence[Column] = ()
) -> Answer:
    """Run a target of a dashboard's JSON. Arguments and errors are those of `ask`; MacroError as well."""
    return ask(
        store,
        expand(target["rawSql"], context),
        is_series=target["format"] == 0,
        ref_id=target["refId"],
        columns=columns,
    )


def run(store: Store, target: Mapping[str, Any], context: Context) -> Frame | None:
    """What the panel of this target gets. Raises as `answer`, and FrameError."""
    return answer(store, target, context).frame()


def options_of(
    store: Store, variable: Mapping[str, Any], context: Context
) -> list[tuple[str, str]]:
    """(value, text) of what can be chosen in a query variable of a dashboard's JSON."""
    found = ask(store, expand(variable["query"]["rawSql"], context))
    return [(str(row[0]), str(row[1] if len(row) > 1 else row[0])) for row in found.rows]


def repeated(
    dashboard: Mapping[str, Any], context: Context
) -> Iterator[tuple[Mapping[str, Any], Context]]:
    """The dashboard's panels with what each is expanded with: those of a repeated row for each value.

    What can be chosen in the variable has to be in `context.options` when All is.
    """
    row: Mapping[str, Any] = {}
    blocks: list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]] = []
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            row = panel
            blocks.append((row, list(panel.get("panels") or [])))
        elif blocks:
            blocks[-1][1].append(panel)
        else:
            blocks.append((row, [panel]))
    for header, panels in blocks:
        name = header.get("repeat")
        for scope in (
            [context.within(name, one) for one in _chosen(name, context)] if name else [context]
        ):
            for panel in panels:
                yield panel, scope


def _chosen(name: str, context: Context) -> tuple[str, ...]:
    value = context.variables.get(name, ())
    if value == ("$__all",):
        return context.options.get(name, ())
    return value if isinstance(value, tuple) else (value,)
