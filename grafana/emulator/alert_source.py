"""The database as alert rules ask it: macros expanded as the plugin does, rows as a frame."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from grafana.emulator import frames
from grafana.emulator.frames import Column, Frame
from grafana.emulator.macros import expand_backend
from grafana.emulator.time_range import TimeRange
from otel_metering.errors import MeteringError
from receiver.store.client import Store

Ask = Callable[[Mapping[str, Any], datetime], Frame | None]
"""Entry of a rule's `data`, time of the evaluation -> what the data source answers; None: no rows."""


class AskError(Exception):
    """The data source failed, or its answer cannot be an alert's."""


@dataclass(frozen=True, slots=True)
class Source:
    """Asks the store. It is an `Ask`."""

    store: Store
    _columns: dict[str, list[Column]] = field(default_factory=dict)

    def __call__(self, query: Mapping[str, Any], at: datetime) -> Frame | None:
        """Answer a query of a rule.

        Raises:
            AskError: It is no table, or the database did not answer it.
        """
        if query["model"]["format"] != 1:
            raise AskError("only tables are emulated here")
        window, model = query["relativeTimeRange"], query["model"]
        shown = TimeRange(
            at - timedelta(seconds=window["from"]), at - timedelta(seconds=window["to"])
        )
        sql = expand_backend(model["rawSql"], shown, model.get("intervalMs", 1000))
        try:
            rows = self.store.query(sql)
            if not rows:
                return None
            return frames.table(self.columns(model["rawSql"], sql), rows, query["refId"])
        except (MeteringError, frames.FrameError) as error:
            raise AskError(str(error)) from error

    def columns(self, raw: str, sql: str) -> list[Column]:
        """Names and types of the answer; they do not depend on the time, so they are asked for once."""
        if raw not in self._columns:
            described = self.store.query(f"DESCRIBE TABLE ({sql})")
            self._columns[raw] = [Column(str(row[0]), str(row[1])) for row in described]
        return self._columns[raw]
