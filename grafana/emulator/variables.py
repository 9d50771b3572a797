"""What the page does to a query before it is sent: conditions that All removes, then variables.

Rules: CHDatasource.ts of the plugin (`applyConditionalAll`, `format`) and the formats of @grafana/scenes.
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import quote

from grafana.emulator.time_range import Context, Value

ALL: Final = "$__all"

_CONDITIONAL: Final = "$__conditionalAll("
_VARIABLE: Final = re.compile(
    r"\$(\w+)|\[\[(\w+?)(?::(\w+))?\]\]|\$\{(\w+)(?:\.([^:^}]+))?(?::([^}]+))?\}"
)
_IN_CONDITION: Final = re.compile(r"(?<=\$\{)\w+(?=\})|(?<=\$)\w+")
_JS_PATTERN: Final = re.compile(r"\$([$&`'])")


def interpolate(sql: str, context: Context) -> str:
    """Do both, in the page's order."""
    return replace_variables(conditional_all(sql, context.variables), context)


def conditional_all(sql: str, variables: Mapping[str, Value]) -> str:
    """Each `$__conditionalAll(condition, $name)` -> its condition, or 1=1 when all or nothing is chosen.

    The last one first. What counts is the choice at the top of the page, also within a repeated row.
    """
    while (start := sql.rfind(_CONDITIONAL)) != -1:
        arguments = _arguments(sql, start + len(_CONDITIONAL) - 1)
        if len(arguments) != 2:
            return sql
        phrase, named = arguments[0], _IN_CONDITION.search(arguments[1].strip())
        if named and named[0] in variables and _joined(variables[named[0]]) in ("", ALL):
            phrase = "1=1"
        # JavaScript's `replace`: the first place that reads so, and `$` before some signs is special.
        whole = f"{_CONDITIONAL}{arguments[0]},{arguments[1]})"
        sql = sql.replace(whole, _JS_PATTERN.sub(_js(whole), phrase), 1)
    return sql


def replace_variables(text: str, context: Context) -> str:
    """Variables -> their values; what is no variable stays."""

    def value_of(match: re.Match[str]) -> str:
        name = match[1] or match[2] or match[4]
        form = match[3] or match[6] or ""
        found = _value(name, context)
        if found is None:
            return match[0]
        if name in ("__from", "__to") and form.startswith("date"):
            return _date(context, name, form)
        return _format(found, form)

    return _VARIABLE.sub(value_of, text)


def _value(name: str, context: Context) -> Value | None:
    if name in context.scoped:
        return context.scoped[name]
    built_in = {
        "__from": str(context.time.begin_ms),
        "__to": str(context.time.end_ms),
        "__interval": duration(context.interval),
        "__interval_ms": str(context.interval),
    }
    if name in built_in:
        return built_in[name]
    value = context.variables.get(name)
    return context.options.get(name, ()) if value == (ALL,) else value


def _date(context: Context, name: str, form: str) -> str:
    moment = context.time.begin if name == "__from" else context.time.end
    if form == "date:seconds":
        return str(int(moment.timestamp()))
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def _format(value: Value, form: str) -> str:
    if form:
        return _FORMATS[form](value)
    # The plugin's own format: without escapes.
    return "'" + "','".join(value) + "'" if isinstance(value, tuple) else value


def _joined(value: Value) -> str:
    return ",".join(value) if isinstance(value, tuple) else value


def _each(escape: Callable[[str], str]) -> Callable[[Value], str]:
    def formatted(value: Value) -> str:
        return ",".join(escape(one) for one in (value if isinstance(value, tuple) else (value,)))

    return formatted


def _percent(value: Value) -> str:
    text = "{" + ",".join(value) + "}" if isinstance(value, tuple) else value
    return quote(text, safe="-_.~")


_FORMATS: Final[Mapping[str, Callable[[Value], str]]] = {
    "csv": _joined,
    "json": lambda value: json.dumps(list(value) if isinstance(value, tuple) else value),
    "percentencode": _percent,
    "raw": _joined,
    "singlequote": _each(lambda one: "'" + one.replace("'", "\\'") + "'"),
    "sqlstring": _each(lambda one: "'" + one.replace("'", "''").replace('"', '\\"') + "'"),
    "text": lambda value: " + ".join(value) if isinstance(value, tuple) else value,
}


def _arguments(sql: str, opening: int) -> list[str]:
    """Between the parenthesis there and its end, by commas at depth 1; it knows no strings."""
    found, depth, start = [], 0, opening + 1
    for place in range(opening, len(sql)):
        sign = sql[place]
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if sign == "," and depth == 1:
            found.append(sql[start:place])
            start = place + 1
        if depth == 0:
            return [*found, sql[start:place]]
    return []


def _js(whole: str) -> Callable[[re.Match[str]], str]:
    def value_of(match: re.Match[str]) -> str:
        return {"$": "$", "&": whole}.get(match[1], "")

    return value_of


def duration(milliseconds: int) -> str:
    """As Grafana writes an interval: 500ms, 30s, 5m, 1h, 1d."""
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds >= length and milliseconds % length == 0:
            return f"{milliseconds // length}{unit}"
    return f"{milliseconds}ms"
