"""The database as alert rules ask it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from receiver.store.client import Store


@dataclass(frozen=True)
class Field:
    name: str
    type: str


@dataclass(frozen=True)
class Frame:
    fields: tuple[Field, ...]
    values: tuple[list[Any], ...]


def expand(sql: str, start: int, end: int) -> str:
    import re

    sql = re.sub(r"\$__timeFilter\(([^)]*)\)", rf"\1 >= toDateTime({start}) AND \1 <= toDateTime({end})", sql)
    return sql.replace("$__toTime", f"toDateTime({end})").replace("$__fromTime", f"toDateTime({start})")


def kind(t: pa.DataType) -> str:
    if pa.types.is_dictionary(t):
        t = t.value_type
    if pa.types.is_boolean(t):
        return "boolean"
    if pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_decimal(t):
        return "number"
    if pa.types.is_string(t) or pa.types.is_binary(t):
        return "string"
    return "time" if pa.types.is_temporal(t) else "other"


def asking(store: Store) -> Any:
    def ask(query: Mapping[str, Any], at: datetime) -> Frame:
        now = int(at.timestamp())
        w = query["relativeTimeRange"]
        t = store.query_table(expand(query["model"]["rawSql"], now - w["from"], now - w["to"]))
        return Frame(
            tuple(Field(f.name, kind(f.type)) for f in t.schema),
            tuple(t.column(i).to_pylist() for i in range(t.num_columns)),
        )
    return ask
