"""Macros and variables are expanded as the plugin and the page do.

Expected texts are written by hand from their sources: pkg/macros and CHDatasource.ts of
grafana/clickhouse-datasource 4.20, the parser of grafana/macropro, the formats of @grafana/scenes 8.
"""

from datetime import UTC, datetime

import pytest

from grafana.emulator.macros import MacroError, blank_comments, expand, expand_backend
from grafana.emulator.time_range import Context, TimeRange, Value
from grafana.emulator.variables import conditional_all, replace_variables

BEGIN = datetime(2014, 11, 12, 11, 45, 26, 371_000, tzinfo=UTC)
END = datetime(2015, 11, 12, 11, 45, 26, 371_000, tzinfo=UTC)
TIME = TimeRange(BEGIN, END)
F, T = "toDateTime(1415792726)", "toDateTime(1447328726)"
F_MS, T_MS = "fromUnixTimestamp64Milli(1415792726371)", "fromUnixTimestamp64Milli(1447328726371)"
F_DAY, T_DAY = "toDate('2014-11-12')", "toDate('2015-11-12')"


def backend(sql: str, interval_ms: int = 20_000) -> str:
    return expand_backend(sql, TIME, interval_ms)


@pytest.mark.parametrize(
    ("macro", "expected"),
    [
        ("$__fromTime", F),
        ("$__toTime", T),
        ("$__fromTime_ms", F_MS),
        ("$__toTime_ms", T_MS),
        ("$__timeFilter(at)", f"at >= {F} AND at <= {T}"),
        ("$__timeFilter_ms(at)", f"at >= {F_MS} AND at <= {T_MS}"),
        ("$__dateFilter(day)", f"day >= {F_DAY} AND day <= {T_DAY}"),
        (
            "$__dateTimeFilter(day, at)",
            f"(day >= {F_DAY} AND day <= {T_DAY}) AND (at >= {F} AND at <= {T})",
        ),
        ("$__dt(day,at)", f"(day >= {F_DAY} AND day <= {T_DAY}) AND (at >= {F} AND at <= {T})"),
        ("$__timeFrom(at)", f"at >= {F}"),
        ("$__timeTo(at)", f"at <= {T}"),
        ("$__timeInterval(at)", "toStartOfInterval(toDateTime(at), INTERVAL 20 second)"),
        (
            "$__timeInterval_ms(at)",
            "toStartOfInterval(toDateTime64(at, 3), INTERVAL 20000 millisecond)",
        ),
        ("$__timeGroup(at, 5m)", "toStartOfInterval(toDateTime(at), INTERVAL 300 second)"),
        ("$__timeGroup(at, '1h30m')", "toStartOfInterval(toDateTime(at), INTERVAL 5400 second)"),
        ("$__interval_s", "20"),
        ("$__interval_ms", "20000"),
        ("$__interval", "20s"),
    ],
)
def test_each_macro_is_expanded(macro: str, expected: str) -> None:
    assert backend(f"SELECT {macro} FROM t") == f"SELECT {expected} FROM t"


def test_an_interval_is_at_least_a_second() -> None:
    assert backend("$__interval_s $__timeInterval(a)", 250) == (
        "1 toStartOfInterval(toDateTime(a), INTERVAL 1 second)"
    )


def test_the_longest_name_wins_and_a_longer_word_is_no_macro() -> None:
    assert (
        backend("$__interval_ms $__fromTimer $__unknown(a)") == "20000 $__fromTimer $__unknown(a)"
    )


def test_arguments_are_split_outside_of_parentheses_and_quotes_and_trimmed() -> None:
    assert backend("$__dt( f(a, b) , g('x,)') )") == (
        f"(f(a, b) >= {F_DAY} AND f(a, b) <= {T_DAY}) AND (g('x,)') >= {F} AND g('x,)') <= {T})"
    )


def test_a_macro_in_an_argument_is_expanded_first() -> None:
    assert backend("$__timeFilter($__timeInterval(at))") == (
        f"toStartOfInterval(toDateTime(at), INTERVAL 20 second) >= {F} "
        f"AND toStartOfInterval(toDateTime(at), INTERVAL 20 second) <= {T}"
    )


@pytest.mark.parametrize(
    "sql",
    [
        "$__timeFilter()",
        "$__timeFilter",
        "$__timeFilter(a, b)",
        "$__dateTimeFilter(a)",
        "$__timeGroup(at)",
        "$__timeGroup(at, 1d)",
        "$__columns(meter, quantity)",
    ],
)
def test_what_the_plugin_refuses_is_refused(sql: str) -> None:
    with pytest.raises(MacroError):
        backend(sql)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("a -- $__timeFilter()\nb", "a                   \nb"),
        ("a /* $__x() \n */ b", "a" + " " * 11 + "\n" + " " * 4 + "b"),
        ("'-- kept' -- gone", "'-- kept'        "),
        ("'it''s -- kept'", "'it''s -- kept'"),
        (r"'\' -- kept'", r"'\' -- kept'"),
        ('`-- kept` "-- kept"', '`-- kept` "-- kept"'),
        ("$tag$ -- kept $tag$ -- gone", "$tag$ -- kept $tag$        "),
        ("a /* never closed", "a                "),
    ],
)
def test_comments_become_spaces_and_strings_stay(sql: str, expected: str) -> None:
    assert blank_comments(sql) == expected


def context(**variables: Value) -> Context:
    return Context(
        time=TIME,
        variables=variables,
        options={"tenant": ("a", "b", "c")},
        interval_ms=300_000,
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (("$__all",), "1=1 AND x"),
        ("$__all", "1=1 AND x"),
        ("", "1=1 AND x"),
        (("acme",), "id IN (${tenant:singlequote}) AND x"),
        (("$__all", "acme"), "id IN (${tenant:singlequote}) AND x"),
    ],
)
def test_a_condition_is_dropped_when_all_or_nothing_is_chosen(value: Value, expected: str) -> None:
    sql = "$__conditionalAll(id IN (${tenant:singlequote}), $tenant) AND x"

    assert conditional_all(sql, {"tenant": value}) == expected


def test_each_condition_goes_by_its_own_variable() -> None:
    sql = "$__conditionalAll(f(a, b) = 1, $one) AND $__conditionalAll(c IN ($two), ${two})"

    assert conditional_all(sql, {"one": ("x",), "two": ("$__all",)}) == "f(a, b) = 1 AND 1=1"


def test_a_condition_of_an_unknown_variable_stays_and_a_wrong_one_is_left_alone() -> None:
    assert conditional_all("$__conditionalAll(a = 1, $gone)", {}) == "a = 1"
    assert conditional_all("$__conditionalAll(a = 1)", {}) == "$__conditionalAll(a = 1)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${tenant:singlequote}", "'a','b','c'"),
        ("${quoted:singlequote}", "'d\\'e'"),
        ("${quoted:sqlstring}", "'d''e'"),
        ("$tenant", "'a','b','c'"),
        ("[[tenant]]", "'a','b','c'"),
        ("${tenant:csv}", "a,b,c"),
        ("$one ${one:singlequote} ${one:sqlstring} ${one:raw}", "x 'x' 'x' x"),
        ("$unknown ${unknown} $tenants", "$unknown ${unknown} $tenants"),
        ("$__interval $__interval_ms", "5m 300000"),
        ("$__from ${__to}", "1415792726371 1447328726371"),
        ("${__from:date:iso} ${__to:date:seconds}", "2014-11-12T11:45:26.371Z 1447328726"),
        ("$__fromTime", "$__fromTime"),
    ],
)
def test_variables_are_replaced_in_their_format(text: str, expected: str) -> None:
    chosen = context(tenant=("a", "b", "c"), one="x", quoted="d'e")

    assert replace_variables(text, chosen) == expected


def test_all_is_each_of_the_options_outside_of_a_condition() -> None:
    assert replace_variables("${tenant:singlequote}", context(tenant=("$__all",))) == "'a','b','c'"


def test_a_repeated_row_has_its_own_value_and_conditions_do_not_know_it() -> None:
    repeated = context(meter=("$__all",)).within("meter", "clicks")

    assert expand("${meter:singlequote} $__conditionalAll(m = $meter, $meter)", repeated) == (
        "'clicks' 1=1"
    )


def test_free_text_that_is_percent_encoded_leaves_nothing_that_ends_a_literal() -> None:
    hostile = "a'b\\c\") -- $__timeFilter() {x} é %"
    encoded = replace_variables("${text:percentencode}", context(text=hostile))

    assert encoded == ("a%27b%5Cc%22%29%20--%20%24__timeFilter%28%29%20%7Bx%7D%20%C3%A9%20%25")


def test_the_page_comes_before_the_backend() -> None:
    sql = "SELECT $__interval_s WHERE $__timeFilter($column) -- $__timeFilter()"

    assert expand(sql, context(column="at")) == (
        f"SELECT 300 WHERE at >= {F} AND at <= {T}" + " " * len(" -- $__timeFilter()")
    )
