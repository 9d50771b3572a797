"""Whatever a meters.yaml holds, it gives meters, or an error that names line, field and remedy."""

import string
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from otel_metering._instrumentation_config import DEFAULT_REQUESTS_METER, DEFAULT_TOKENS_METER
from otel_metering.contract.attributes import SCOPE_NAME
from otel_metering.contract.meter import (
    Aggregation,
    MeterDefinition,
    Meters,
    Signal,
    Source,
    SpanKind,
)
from otel_metering.errors import ConfigurationError
from receiver.meters_yaml import MAX_BYTES, read_text
from tests.unit.test_meter_definitions import files

REPOSITORY = Path(__file__).parents[2]

METER = """\
# line 1
meters:
  - slug: first
  - slug: second
    {}
"""
"""The field under test is in line 5."""

SOURCE = """\
meters:
  - slug: a
    source:
      signal: {signal}
      {field}
"""
"""The field under test is in line 5."""


def refusal(text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read_text(text.encode(), "meters.yaml")
    return str(caught.value)


@pytest.mark.parametrize("slug", [DEFAULT_REQUESTS_METER, DEFAULT_TOKENS_METER])
def test_what_the_sdk_counts_by_default_is_not_counted_once_more_by_the_file_of_this_repository(
    slug: str,
) -> None:
    meters = read_text((REPOSITORY / "meters.yaml").read_bytes(), "meters.yaml")

    assert slug not in meters.by_slug
    assert meters.fed_by(signal=Signal.METRIC, name=slug, scope=SCOPE_NAME) == ()


def test_the_file_of_this_repository_has_its_two_meters() -> None:
    meters = read_text((REPOSITORY / "meters.yaml").read_bytes(), "meters.yaml")

    assert {one.slug: (one.source, one.aggregation) for one in meters.definitions} == {
        "http.requests": (Source(signal=Signal.SPAN, kind=SpanKind.SERVER), Aggregation.COUNT),
        "llm.tokens": (
            Source(signal=Signal.METRIC, name="gen_ai.client.token.usage"),
            Aggregation.SUM,
        ),
    }


@pytest.mark.parametrize("text", ["meters:", "meters: []", "---\nmeters:\n  # - slug: a\n"])
def test_a_file_may_define_no_meter_if_it_says_so(text: str) -> None:
    assert read_text(text.encode(), "meters.yaml") == Meters()


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "---\n", "\ufeff"])
def test_an_empty_file_may_be_half_written_and_is_refused(text: str) -> None:
    assert refusal(text).endswith("the document is empty; for no meters at all write: meters: []")


def test_a_byte_order_mark_and_windows_line_ends_change_nothing() -> None:
    plain = "meters:\n  - slug: a\n    unit: By\n"

    windows = ("\ufeff" + plain.replace("\n", "\r\n")).encode()

    assert read_text(windows, "x") == read_text(plain.encode(), "x")


def test_an_alias_stands_for_what_its_anchor_holds() -> None:
    meters = read_text(
        b"meters:\n- slug: a\n  group_by: &x [p, q]\n- slug: b\n  group_by: *x\n", "x"
    )

    assert meters.find("b") == MeterDefinition(slug="b", group_by=("p", "q"))


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("agregation: sum", "meters[1].agregation is no field; known here are aggregation, description, group_by, slug, source, tenant, unit, value"),
        ("unit:", "meters[1].unit has no value; give it one or remove it"),
        ("unit: 5", "meters[1].unit is the number 5; it must be text, in quotes"),
        ("unit: {request}", "meters[1].unit is a mapping; it must be text, in quotes"),
        ("unit: ''", "meters[1].unit is ''; it must be text"),
        ("description: true", "meters[1].description is true; it must be text, in quotes"),
        ("tenant: [a]", "meters[1].tenant is a list; it must be text, in quotes"),
        ("aggregation: total", "meters[1].aggregation is 'total'; it must be one of sum, count, min, max, avg, latest, unique_count, p50, p90, p95, p99"),
        ("group_by: region", "meters[1].group_by is 'region'; it must be a list, `- item` on each line"),
        ("group_by: [a, 5]", "meters[1].group_by[1] is the number 5; it must be text, in quotes"),
        ("group_by: [a, b, a]", "meters[1].group_by[2] is 'a' a second time; remove it"),
        ("source: span", "meters[1].source is 'span'; it must be a mapping, `name: value` on each line"),
        ("source: {}", "meters[1].source.signal is missing; it must be one of metric, span, log"),
        ("source: {signal: event}", "meters[1].source.signal is 'event'; it must be one of metric, span, log"),
        ("source: {signal: log, kind: server}", "meters[1].source.kind is 'server', but only spans have a kind; remove it"),
        ("source: {signal: span, kind: serverr}", "meters[1].source.kind is 'serverr'; it must be one of internal, server, client, producer, consumer"),
        ("source: {signal: span, names: x}", "meters[1].source.names is no field; known here are kind, name, scope, signal, where"),
        ("source: {signal: span, where: a}", "meters[1].source.where is 'a'; it must be a mapping, `name: value` on each line"),
        ("source: {signal: span, where: {}}", "meters[1].source.where has no conditions; write some or remove it"),
        ("source: {signal: span, where: {a: []}}", "meters[1].source.where.a is an empty list, which nothing fits; list what it may be"),
        ("source: {signal: span, where: {http.a: [1, {}]}}", "meters[1].source.where['http.a'][1] is a mapping; it must be a text, a number, true, false, null (absent), or a list of these"),
        ("value: {}", "meters[1].value.attribute is missing; name the attribute"),
        ("value: {attribut: a}", "meters[1].value.attribut is no field; known here are attribute"),
        ("value: [a]", "meters[1].value is a list; it must be text, in quotes"),
        ("value: tokens", "meters[1].value is the attribute 'tokens', but the meter has no source: only spans and log records have their quantity in an attribute; remove it, or use aggregation: unique_count"),
        ("value: duration", "meters[1].value is 'duration', which only spans have, but the meter has no source; remove it, or for an attribute of this name write {attribute: duration}"),
        ("value: count", "meters[1].value is 'count', which only metrics have, but the meter has no source; remove it, or for an attribute of this name write {attribute: count}"),
        ("slug2: x", "meters[1].slug2 is no field"),
        ("slug: third", "'slug' is here a second time, after line 4; remove one"),
        ("on: x", "'on' is text to some readers of YAML and a truth value to others; put it in quotes, or write true or false"),
        ("unit: No", "'No' is text to some readers of YAML and a truth value to others"),
        ("unit: 2026-01-01", "'2026-01-01' is a date to some readers of YAML; put it in quotes"),
        ("unit: 010", "'010' is no plain decimal number; write it like 30 or 0.5, or put it in quotes"),
        ("unit: 1e3", "'1e3' is no plain decimal number"),
        ("unit: 1:30", "'1:30' is no plain decimal number"),
        ("unit: 1_000", "'1_000' is no plain decimal number"),
        ("unit: .inf", "'.inf' is no plain decimal number"),
        ("200: x", "the name of a field is the number 200; put it in quotes"),
        ("? [a]\n    : x", "the name of a field is a list; put it in quotes"),
        ("<<: {unit: x}", "'<<' merges mappings, which is not supported; write the fields out"),
        ("unit: !secret x", "the tag '!secret' has no meaning here; remove it"),
        ("unit: !!binary eA==", "the tag 'tag:yaml.org,2002:binary' has no meaning here; remove it"),
        ('unit: "\\ud800"', "half of a surrogate pair is no character; remove it"),
        ("unit: a\x02b", "there is a control character, U+0002; remove it"),
        ("unit: *x", "it is not YAML: found undefined alias 'x'; put a text that begins with * in quotes"),
        ("\tunit: x", "it is indented with a tab, which YAML forbids; use spaces"),
        ("unit: a: b", "it is not YAML: mapping values are not allowed here; check indentation, quotes and colons around here"),
    ],
)  # fmt: skip
def test_an_error_names_line_field_and_remedy(field: str, said: str) -> None:
    assert refusal(METER.format(field)).startswith(f"meters.yaml:5: {said}")


@pytest.mark.parametrize(
    ("signal", "field", "said"),
    [
        ("metric", "kind: server", "source.kind is 'server', but only spans have a kind; remove it"),
        ("span", "kind: [server]", "source.kind is a list; it must be one of internal, server, client, producer, consumer"),
        ("span", "name: 5", "source.name is the number 5; it must be text, in quotes"),
        ("span", "where: {a: {b: c}}", "source.where.a is a mapping; it must be a text, a number, true, false, null (absent), or a list of these"),
        ("metric", "name: x\n    value: tokens", "value is the attribute 'tokens', but the source is a metric: only spans and log records have their quantity in an attribute; remove it, or use aggregation: unique_count"),
        ("metric", "name: x\n    value: duration", "value is 'duration', which only spans have, but the source is a metric; remove it, or for an attribute of this name write {attribute: duration}"),
        ("log", "name: x\n    value: duration", "value is 'duration', which only spans have, but the source is a log; "),
        ("span", "name: x\n    value: count", "value is 'count', which only metrics have, but the source is a span; remove it, or for an attribute of this name write {attribute: count}"),
        ("log", "name: x\n    value: sum", "value is 'sum', which only metrics have, but the source is a log; "),
        ("span", "name: x\n    value: duration\n    aggregation: unique_count", "value is 'duration', but unique_count counts the values of an attribute; for an attribute of this name write {attribute: duration}"),
    ],
)  # fmt: skip
def test_source_and_value_must_fit(signal: str, field: str, said: str) -> None:
    line = 6 if "\n" in field else 5

    message = refusal(SOURCE.format(signal=signal, field=field))

    assert message.startswith(f"meters.yaml:{line}: meters[0].{said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- slug: a", "1: the document is a list; it must be a mapping, `name: value` on each line"),
        ("{}", "1: meters is missing; for no meters at all write: meters: []"),
        ("meter: []", "1: meter is no field; known here are meters"),
        ("\nmeters: a", "2: meters is 'a'; it must be a list, `- item` on each line"),
        ("meters:\n- a", "2: meters[0] is 'a'; it must be a mapping, `name: value` on each line"),
        ("meters:\n-", "2: meters[0] is empty; it must be a mapping, `name: value` on each line"),
        ("meters:\n- slug: a\n- unit: b", "3: meters[1].slug is missing; give the meter a name"),
        ("meters:\n- slug: a b", "2: meters[0].slug is 'a b'; it must be 1 to 128 characters of A-Z a-z 0-9 _ . : @ / -"),
        (f"meters:\n- slug: {'a' * 129}", f"2: meters[0].slug is '{'a' * 64}...'; it must be 1 to 128"),
        ("meters:\n- slug: 5", "2: meters[0].slug is the number 5; it must be text, in quotes"),
        ("meters:\n- slug: a\n- slug: b\n-\n  slug: a", "5: meters[2].slug is 'a', as that of meters[0]; rename or remove one"),
        ("meters:\n- slug: a\n\n  aggregation: unique_count", "2: meters[0].value is missing; unique_count needs the attribute whose values it counts"),
        ("meters:\n- slug: a\n  source:\n\n    name: x", "3: meters[0].source.signal is missing; it must be one of metric, span, log"),
        ("--- {}\n--- {}", "2: it is not YAML: expected a single document in the stream"),
        ("meters:\n- slug: 'a\n- slug: b\n", "4: it is not YAML: while scanning a quoted scalar, found unexpected end of stream (what is wrong may begin in line 2)"),
        ("meters: &a\n- slug: a\n  group_by: *a", "2: it is nested deeper than 16 levels; flatten it"),
        ("\n" + "[" * 100_000, "2: it is nested deeper than 16 levels; flatten it"),
        ("meters:\n" + "- " + "{a: " * 100_000, "2: it is nested deeper than 16 levels; flatten it"),
    ],
)  # fmt: skip
def test_the_line_is_that_of_the_field_or_of_what_it_is_missing_in(text: str, said: str) -> None:
    assert refusal(text).startswith(f"meters.yaml:{said}")


def test_aliases_of_aliases_are_refused_before_they_are_spelled_out() -> None:
    laughs = ["meters:", "- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    laughs += [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]

    assert "with its aliases spelled out it has over 200000 values" in refusal("\n".join(laughs))


def test_a_file_that_is_too_large_is_not_parsed() -> None:
    assert refusal("#" * (MAX_BYTES + 1)) == (
        f"meters.yaml: it has over {MAX_BYTES} bytes, which is the limit; remove meters"
    )


def test_a_file_that_is_not_utf_8_says_where() -> None:
    with pytest.raises(ConfigurationError, match=r"^m:3: it is not UTF-8; save it as UTF-8$"):
        read_text(b"meters:\n- slug: a\n  unit: \xff", "m")


def gives_meters_or_an_error_with_its_place(content: bytes) -> None:
    try:
        read_text(content, "m")
    except ConfigurationError as error:
        refused = str(error)
    else:
        refused = "m: nothing"
    assert refused.startswith("m:")


@given(document=files)
def test_any_yaml_document_gives_meters_or_a_configuration_error(document: object) -> None:
    text = yaml.dump(document, allow_unicode=True)

    gives_meters_or_an_error_with_its_place(text.encode("utf-8", "surrogatepass"))


PIECES = [
    "meters:", "\n", "- ", "  ", "slug: a", "source:", "signal: span", "where: ", "{", "}", "[", "]",
    ",", ": ", "&a ", "*a", "!!", "!x ", "? ", "'", '"', "|\n", ">-\n", "# ", "\t", "<<", "null", "~",
    "1e3", "%YAML 1.1\n", "%TAG ! x\n", "---\n", "...\n", "\\x", "\\U00110000", "\ufeff", "\x85",
]  # fmt: skip


@given(text=st.lists(st.sampled_from(PIECES) | st.text(string.printable, max_size=3)).map("".join))
@example(text='meters: "\\UFFFFFFFF"')
@example(text=f"%YAML {'9' * 5000}.1\n--- a")
@example(text=f"meters: {'9' * 5000}")
def test_any_text_gives_meters_or_a_configuration_error(text: str) -> None:
    gives_meters_or_an_error_with_its_place(text.encode())


@given(content=st.binary())
def test_any_bytes_give_meters_or_a_configuration_error(content: bytes) -> None:
    gives_meters_or_an_error_with_its_place(content)
