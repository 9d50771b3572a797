"""A query as the plugin's backend sends it: macros expanded, for dashboards and alert rules.

Rules: pkg/macros of the plugin, and the parser of grafana/macropro, which it uses.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from grafana.emulator.time_range import Context, TimeRange
from grafana.emulator.variables import duration, interpolate

_PREFIX: Final = "$__"
_NAME: Final = re.compile(r"[A-Za-z0-9_]+")
_TAG: Final = re.compile(r"\$\w*\$")
_GO_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_GO_UNITS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}

STATEMENTS: Final = ("columns", "rateColumns", "perSecondColumns", "increaseColumns", "lttb")
"""Macros that rewrite the whole statement. They are not emulated, so no query of ours may have one."""


class MacroError(ValueError):
    """The plugin would refuse the query."""


def expand(sql: str, context: Context) -> str:
    """A dashboard's query -> what the engine gets.

    Raises:
        MacroError: A macro has a wrong number of arguments, or is not emulated.
    """
    return expand_backend(interpolate(sql, context), context.time, context.interval)


def expand_backend(sql: str, time: TimeRange, interval_ms: int) -> str:
    """The same without what the page does: an alert rule's query. Raises as `expand`."""
    return _Expander(time, interval_ms).expand(blank_comments(sql))


def blank_comments(sql: str) -> str:
    """Comments -> spaces; not where they stand in a string, in backticks or between two equal tags."""
    out, place = [], 0
    while place < len(sql):
        end = _skip_quoted(sql, place)
        if end > place:
            out.append(sql[place:end])
        elif sql.startswith("--", place):
            end = _line_end(sql, place)
            out.append(" " * (end - place))
        elif sql.startswith("/*", place):
            close = sql.find("*/", place + 2)
            end = len(sql) if close < 0 else close + 2
            out.append("".join(sign if sign in "\r\n" else " " for sign in sql[place:end]))
        else:
            end = place + 1
            out.append(sql[place])
        place = end
    return "".join(out)


class _Expander:
    """Of one query. Times are cut to seconds, or to milliseconds, as the macro says."""

    def __init__(self, time: TimeRange, interval_ms: int) -> None:
        self._from_ms, self._to_ms = time.begin_ms, time.end_ms
        self._from_s, self._to_s = self._from_ms // 1000, self._to_ms // 1000
        self._interval_ms = max(interval_ms, 1)
        self._interval_s = max(interval_ms // 1000, 1)
        one, two, none = 1, 2, 0
        self._macros: Mapping[str, tuple[int | None, Callable[[Sequence[str]], str]]] = {
            "timeFilter": (one, lambda a: self._between(a[0], *self._seconds)),
            "timeFilter_ms": (one, lambda a: self._between(a[0], *self._millis)),
            "dateFilter": (one, lambda a: self._between(a[0], *self._dates)),
            "dateTimeFilter": (two, self._date_time),
            "dt": (two, self._date_time),
            "timeFrom": (one, lambda a: f"{a[0]} >= {self._seconds[0]}"),
            "timeTo": (one, lambda a: f"{a[0]} <= {self._seconds[1]}"),
            "fromTime": (None, lambda _: self._seconds[0]),
            "toTime": (None, lambda _: self._seconds[1]),
            "fromTime_ms": (None, lambda _: self._millis[0]),
            "toTime_ms": (None, lambda _: self._millis[1]),
            "timeInterval": (one, lambda a: _bucket(a[0], self._interval_s)),
            "timeInterval_ms": (
                one,
                lambda a: (
                    f"toStartOfInterval(toDateTime64({a[0]}, 3), "
                    f"INTERVAL {self._interval_ms} millisecond)"
                ),
            ),
            "timeGroup": (two, lambda a: _bucket(a[0], _go_seconds(a[1]))),
            "interval_s": (None, lambda _: str(self._interval_s)),
            "interval_ms": (None, lambda _: str(self._interval_ms)),
            "interval": (none, lambda _: duration(self._interval_ms)),
        }

    @property
    def _seconds(self) -> tuple[str, str]:
        return f"toDateTime({self._from_s})", f"toDateTime({self._to_s})"

    @property
    def _millis(self) -> tuple[str, str]:
        name = "fromUnixTimestamp64Milli"
        return f"{name}({self._from_ms})", f"{name}({self._to_ms})"

    @property
    def _dates(self) -> tuple[str, str]:
        days = (datetime.fromtimestamp(at, UTC) for at in (self._from_s, self._to_s))
        first, last = (f"toDate('{day:%Y-%m-%d}')" for day in days)
        return first, last

    @staticmethod
    def _between(column: str, low: str, high: str) -> str:
        return f"{column} >= {low} AND {column} <= {high}"

    def _date_time(self, arguments: Sequence[str]) -> str:
        day, moment = arguments
        return f"({self._between(day, *self._dates)}) AND ({self._between(moment, *self._seconds)})"

    def expand(self, sql: str) -> str:
        out, place = [], 0
        while (found := sql.find(_PREFIX, place)) != -1:
            out.append(sql[place:found])
            name = _NAME.match(sql, found + len(_PREFIX))
            if name is None or name[0] not in self._macros:
                if name and name[0] in STATEMENTS:
                    raise MacroError(f"$__{name[0]} rewrites the whole statement; write it out")
                place = name.end() if name else found + len(_PREFIX)
                out.append(sql[found:place])
                continue
            raw, place = _argument_text(sql, name.end())
            # Macros in the arguments first: the innermost is done before the one around it.
            out.append(self._call(name[0], _split(self.expand(raw))))
        return "".join(out) + sql[place:]

    def _call(self, name: str, arguments: list[str]) -> str:
        wanted, macro = self._macros[name]
        if wanted and len(arguments) != wanted:
            raise MacroError(
                f"$__{name} takes {wanted} argument{'s' * (wanted > 1)}, and got {len(arguments)}"
            )
        return macro(arguments)


def _bucket(column: str, seconds: int) -> str:
    return f"toStartOfInterval(toDateTime({column}), INTERVAL {seconds} second)"


def _go_seconds(text: str) -> int:
    trimmed = text.strip("'\"")
    parts = _GO_DURATION.findall(trimmed)
    if not parts or "".join(number + unit for number, unit in parts) != trimmed:
        raise MacroError(f"{text} is no duration of Go, as 5m")
    return max(int(sum(float(number) * _GO_UNITS[unit] for number, unit in parts)), 1)


def _argument_text(sql: str, place: int) -> tuple[str, int]:
    """Text between the parentheses that follow, and the place behind them; none: empty."""
    if not sql.startswith("(", place):
        return "", place
    depth, at = 0, place
    while at < len(sql):
        end = _skip_quoted(sql, at)
        if end > at:
            at = end
            continue
        depth += {"(": 1, ")": -1}.get(sql[at], 0)
        at += 1
        if depth == 0:
            return sql[place + 1 : at - 1], at
    return "", place


def _split(raw: str) -> list[str]:
    if not raw.strip():
        return []
    found, depth, start, at = [], 0, 0, 0
    while at < len(raw):
        end = _skip_quoted(raw, at)
        if end > at:
            at = end
            continue
        depth += {"(": 1, ")": -1}.get(raw[at], 0)
        if raw[at] == "," and depth == 0:
            found.append(raw[start:at].strip())
            start = at + 1
        at += 1
    return [*found, raw[start:].strip()]


def _skip_quoted(sql: str, place: int) -> int:
    """The place behind the string, name or tagged text that begins here; `place` if none does."""
    sign = sql[place]
    if sign == "$":
        tag = _TAG.match(sql, place)
        close = sql.find(tag[0], tag.end()) if tag else -1
        return close + len(tag[0]) if tag and close >= 0 else place
    if sign not in "'\"`":
        return place
    at = place + 1
    while at < len(sql):
        if sql[at] == "\\":
            at += 2
        elif sql[at] != sign:
            at += 1
        elif sql.startswith(sign * 2, at):
            at += 2
        else:
            return at + 1
    return len(sql)


def _line_end(sql: str, place: int) -> int:
    ends = [end for end in (sql.find("\n", place), sql.find("\r", place)) if end >= 0]
    return min(ends, default=len(sql))
