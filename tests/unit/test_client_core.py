"""The clients' core: what is asked, when it is asked again, and what is made of the answers."""

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel_metering._config import ClientSettings, read_client_settings
from otel_metering.client import Check, NewEvent, Not, Prefix
from otel_metering.client import _answers as answers
from otel_metering.client import _operations as operations
from otel_metering.client import _quota_operations as quotas
from otel_metering.client._answers import Answer
from otel_metering.client._held import Wanted
from otel_metering.client._lines import Lines
from otel_metering.client._request import Operation, Request, decimal_text, get, moment, send
from otel_metering.client._retry import Attempts, Failure
from otel_metering.clock import ManualClock
from otel_metering.errors import (
    ApiError,
    ConfigurationError,
    InvalidUsageError,
    NoAnswerError,
    QuotaExceededError,
)

SETTINGS = ClientSettings(
    url="http://service",
    api_key="k",
    certificate_file=None,
    timeout=10.0,
    connect_timeout=5.0,
    total_timeout=100.0,
    max_retries=3,
)
READ = get("/meters")
ONCE = send("POST", "/keys", {}, is_repeatable=False)
REFUSED = Failure(was_sent=False, text="connection refused")
LOST = Failure(was_sent=True, text="connection reset")


def answer(status: int, document: object = None, **headers: str) -> Answer:
    content = b"" if document is None else json.dumps(document).encode()
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status=status, headers=named, content=content)


def attempts(
    request: Request = READ, *, clock: ManualClock | None = None, jitter: float = 1.0
) -> Attempts:
    return Attempts(SETTINGS, request, clock=clock or ManualClock(), jitter=lambda: jitter)


def carry_out(operation: Operation[Any], *documents: object) -> tuple[list[Request], Any]:
    """The requests of an operation that gets these answers, and its result."""
    asked = []
    try:
        asked.append(next(operation))
        for document in documents:
            asked.append(operation.send(answer(200, document)))  # noqa: PERF401 - it ends by raising
    except StopIteration as done:
        return asked, done.value
    pytest.fail(f"it asks for more: {asked[-1]}")


@pytest.mark.parametrize("outcome", [answer(429), answer(503), REFUSED])
@pytest.mark.parametrize("request_", [READ, ONCE])
def test_what_was_not_done_is_asked_again_whatever_it_is(
    outcome: Answer | Failure, request_: Request
) -> None:
    assert attempts(request_).pause(outcome) is not None


@pytest.mark.parametrize("outcome", [answer(502), answer(504), LOST])
def test_what_may_have_been_done_is_asked_again_only_if_that_changes_nothing(
    outcome: Answer | Failure,
) -> None:
    assert attempts(READ).pause(outcome) is not None
    if isinstance(outcome, Answer):
        assert attempts(ONCE).pause(outcome) is None
    else:
        with pytest.raises(NoAnswerError, match="whether it was done is not known"):
            attempts(ONCE).pause(outcome)


@pytest.mark.parametrize("status", [200, 204, 301, 400, 401, 403, 404, 409, 413, 500])
def test_any_other_answer_is_the_answer(status: int) -> None:
    assert attempts().pause(answer(status)) is None


def test_pauses_double_and_jitter_takes_any_part_of_them() -> None:
    longest, half, none = (attempts(jitter=jitter) for jitter in (1.0, 0.5, 0.0))

    assert [longest.pause(REFUSED) for _ in range(3)] == [0.2, 0.4, 0.8]
    assert [half.pause(REFUSED) for _ in range(3)] == [0.1, 0.2, 0.4]
    assert [none.pause(REFUSED) for _ in range(3)] == [0.0, 0.0, 0.0]


def test_after_the_last_attempt_the_error_says_how_often_and_why() -> None:
    tried = attempts()
    for _ in range(3):
        tried.pause(answer(503, {"detail": "the spool is full"}, x_request_id="r1"))

    with pytest.raises(NoAnswerError, match=r"4 attempts.*the spool is full") as raised:
        tried.pause(answer(503, {"detail": "the spool is full"}, x_request_id="r1"))

    assert (raised.value.attempts, raised.value.status) == (4, 503)
    assert raised.value.request_id == "r1"


@pytest.mark.parametrize(
    ("asked", "seconds"),
    [
        ("7", 7.0),
        # The manual clock begins at 2026-09-21T14:13:20Z.
        ("Mon, 21 Sep 2026 14:13:50 GMT", 30.0),
        ("Mon, 21 Sep 2026 14:00:00 GMT", 0.0),
        ("soon", 0.0),
        ("", 0.0),
        ("²", 0.0),
        ("-3", 0.0),
    ],
)
def test_retry_after_is_the_least_pause(asked: str, seconds: float) -> None:
    assert attempts(jitter=0.0).pause(answer(429, retry_after=asked)) == seconds
    assert attempts(jitter=1.0).pause(answer(429, retry_after=asked)) == seconds + 0.2


def test_it_gives_up_at_once_when_the_pause_would_pass_the_total_time() -> None:
    with pytest.raises(NoAnswerError, match=r"asks to wait 3600 s; total_timeout is 100 s"):
        attempts().pause(answer(429, {"detail": "slow down"}, retry_after="3600"))


def test_the_last_attempt_gets_only_what_is_left_of_the_total_time() -> None:
    clock = ManualClock()
    tried = attempts(clock=clock)
    assert tried.seconds() == 10.0

    clock.advance(97)

    assert tried.seconds() == pytest.approx(3.0)


def test_usage_is_asked_as_the_api_reads_it_and_all_pages_are_one_result() -> None:
    row = {
        "window_start": "2026-03-29T00:00:00+01:00",
        "window_end": "2026-03-30T00:00:00+02:00",
        "tenant_id": "a",
        "dimensions": {"region": "eu"},
        "value": "98765432109876543210.000000001",
        "previous_value": None,
    }
    page = {
        "meter": "api.calls",
        "aggregation": "sum",
        "unit": "",
        "window": "day",
        "timezone": "Europe/Berlin",
        "table": "usage_hour",
        "data": [row],
        "next_cursor": "c1",
        "a field of a later version": 1,
    }
    asked, usage = carry_out(
        operations.usage(
            "api.calls",
            from_=datetime(2026, 3, 29, 1, tzinfo=timezone(timedelta(hours=1))),
            to=date(2026, 4, 1),
            window="day",
            timezone="Europe/Berlin",
            group_by=["tenant_id", "region"],
            filters={"region": ["eu", "us"], "path": [Prefix("/v1"), Not("/v1/x")]},
            attributes={"plan": "pro"},
            fill_zero=True,
            top=5,
            order="-value",
            compare_previous=True,
        ),
        page,
        {**page, "next_cursor": None},
    )

    assert sorted(asked[0].parameters) == sorted(
        [
            ("meter", "api.calls"),
            ("from", "2026-03-29T00:00:00Z"),
            ("to", "2026-04-01"),
            ("window", "day"),
            ("timezone", "Europe/Berlin"),
            ("group_by", "tenant_id"),
            ("group_by", "region"),
            ("filter[region]", "eu"),
            ("filter[region]", "us"),
            ("filter[path][prefix]", "/v1"),
            ("filter[path][not]", "/v1/x"),
            ("attribute[plan]", "pro"),
            ("fill", "zero"),
            ("top", "5"),
            ("order", "-value"),
            ("compare", "previous"),
        ]
    )
    assert [*asked[1].parameters] == [*asked[0].parameters, ("cursor", "c1")]
    assert len(usage) == 2
    first = usage.rows[0]
    assert first.value == Decimal("98765432109876543210.000000001")
    # A day on which clocks go forward.
    assert first.window_end - first.window_start == timedelta(hours=23)
    assert first.previous_value is None


def test_what_is_not_asked_is_not_sent() -> None:
    assert next(operations.usage("m")).parameters == [("meter", "m")]
    assert list(operations.iter_events().request.parameters) == [("limit", "1000")]


def test_events_get_an_id_each_and_go_in_parts_of_ten_thousand() -> None:
    ids = iter(range(100_000))
    events = [NewEvent(meter="m", tenant_id="t", event_id="mine"), *[NewEvent(meter="m")] * 10_001]
    done = {"accepted": 1, "duplicates": 2, "rejected": [{"index": 1, "reason": "no"}]}

    asked, admission = carry_out(
        operations.send_events(lambda: f"id-{next(ids)}", events), done, done
    )

    bodies = [json.loads(request.body or b"") for request in asked]
    assert [len(body) for body in bodies] == [10_000, 2]
    sent = [event["event_id"] for body in bodies for event in body]
    assert sent[0] == "mine"
    assert len(set(sent)) == 10_002
    assert all(request.is_repeatable for request in asked)
    assert (admission.accepted, admission.duplicates) == (2, 4)
    assert admission.rejected == ((1, "no"), (10_001, "no"))


def test_no_events_need_no_request() -> None:
    asked, admission = carry_out(operations.send_events(lambda: "", []))

    assert (asked, admission.accepted) == ([], 0)


@given(
    st.decimals(allow_nan=False, allow_infinity=False)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
)
def test_a_quantity_is_sent_exactly_and_without_an_exponent(value: Decimal | int | float) -> None:
    text = decimal_text(value)

    assert "e" not in text.lower()
    assert Decimal(text) == Decimal(repr(value) if isinstance(value, float) else value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Decimal("sNaN"), True, "1"])
def test_what_is_no_number_is_not_sent(value: Any) -> None:
    with pytest.raises(InvalidUsageError, match=r"number|type"):
        decimal_text(value)


@given(st.datetimes(timezones=st.timezones(), min_value=datetime(1970, 1, 2)))  # noqa: DTZ001
def test_a_time_is_sent_as_the_same_instant(value: datetime) -> None:
    sent = moment(value)

    assert sent is not None
    assert sent.endswith("Z")
    offset = value.utcoffset()
    assert offset is not None
    # Not ==: Python calls no times equal that are in another zone and in a doubled hour.
    assert datetime.fromisoformat(sent).replace(tzinfo=None) == value.replace(tzinfo=None) - offset


def test_a_time_without_a_zone_is_an_error() -> None:
    with pytest.raises(InvalidUsageError, match="tzinfo=UTC"):
        moment(datetime(2026, 1, 1))  # noqa: DTZ001 - the mistake


@given(st.integers(0, 4_291_747_199), st.integers(0, 999_999_999), st.integers(0, 9))
def test_nanoseconds_of_an_event_survive(seconds: int, ns: int, digits: int) -> None:
    fraction = f"{ns:09}"[:digits]
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    text = f"{whole}{'.' if fraction else ''}{fraction}Z"

    assert answers.time_ns(text) == seconds * 10**9 + int(fraction.ljust(9, "0") or 0)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", b"[]", b"{}", b'{"data": 1}', b'{"data": [{}]}', b"\xff", b"[" * 100_000],
)
def test_what_the_api_would_not_say_is_one_error(content: bytes) -> None:
    found = Answer(status=200, headers={}, content=content)

    with pytest.raises(ApiError, match="not as the query API does"):
        answers.read(found, answers.page_of(answers.meter))


def test_a_problem_keeps_what_it_says() -> None:
    problem = {"type": "urn:x", "title": "Forbidden", "status": 403, "detail": "key has no scope"}

    with pytest.raises(ApiError, match=r"key has no scope \(HTTP 403\)") as raised:
        answers.read(answer(403, problem, x_request_id="abc"), answers.meter)

    assert (raised.value.status, raised.value.title) == (403, "Forbidden")
    assert raised.value.request_id == "abc"


@pytest.mark.parametrize("body", [{"detail": 1}, {"message": "no"}, ["no"], None])
def test_an_error_of_something_in_between_is_said_to_be_that(body: object) -> None:
    assert "not as the query API does" in str(answers.error_of(answer(502, body)))


def decision(**fields: object) -> dict[str, object]:
    return {
        "allowed": True,
        "limit": "10",
        "used": "1",
        "reserved": "4",
        "remaining": "5",
        "resets_at": "2026-10-01T00:00:00Z",
        "reason": "ok",
        "enforcement": "hard",
        "quota_id": "q",
        "reservation_id": "r",
        "expires_at": "2026-09-21T14:14:20Z",
    } | fields


WANTED = Wanted(reservation_id="r", tenant_id="t", meter="m", quantity=4, dimensions={"a": "b"})


def test_a_reservation_has_an_id_of_the_client_so_that_asking_twice_reserves_once() -> None:
    (asked,), held = carry_out(WANTED.take(), decision())

    assert json.loads(asked.body or b"") == {
        "tenant_id": "t",
        "meter": "m",
        "quantity": "4",
        "dimensions": {"a": "b"},
        "reserve": True,
        "reservation_id": "r",
    }
    assert asked.is_repeatable
    assert held.remaining == 5


def test_a_reservation_that_is_denied_is_an_error_that_says_what_remains() -> None:
    denied = decision(allowed=False, reason="limit_exceeded", remaining="3.5", reservation_id=None)

    with pytest.raises(
        QuotaExceededError, match=r"limit_exceeded; 3\.5 remain until 2026-10-01"
    ) as e:
        carry_out(WANTED.take(), denied)

    assert (e.value.remaining, e.value.reason) == (Decimal("3.5"), "limit_exceeded")


def count(held: dict[str, object]) -> Operation[None]:
    return WANTED.count(
        answers.decision(held), 3, timestamp=None, attributes={"c": 1}, new_id=lambda: "unused"
    )


def test_usage_is_counted_through_the_reservation_or_as_the_event_that_it_would_be() -> None:
    reservation = {
        "reservation_id": "r",
        "tenant_id": "t",
        "meter": "m",
        "quantity": "3",
        "state": "committed",
        "expires_at": None,
    }
    (through,), _ = carry_out(count(decision()), reservation)
    unheld = decision(reason="no_quota", limit=None, remaining=None, reservation_id=None)
    (direct,), _ = carry_out(count(unheld), {"accepted": 1, "duplicates": 0, "rejected": []})

    assert through.path == "/v1/meter/reservations/r/commit"
    assert json.loads(through.body or b"") == {"quantity": "3", "attributes": {"a": "b", "c": 1}}
    assert direct.path == "/v1/meter/events"
    assert json.loads(direct.body or b"") == [
        {
            "event_id": "reservation/r",
            "tenant_id": "t",
            "meter": "m",
            "quantity": "3",
            "attributes": {"a": "b", "c": 1},
        }
    ]


def test_ids_in_paths_are_quoted() -> None:
    (asked,), _ = carry_out(operations.request("GET", "/x"), {})
    assert asked.path == "/v1/meter/x"
    assert next(operations.event("a/b ?#%ü")).path == "/v1/meter/events/a%2Fb%20%3F%23%25%C3%BC"
    assert next(quotas.quota("../keys")).path == "/v1/meter/quotas/..%2Fkeys"


def test_many_checks_are_one_request() -> None:
    checks = [Check(tenant_id="t", meter="m"), Check(tenant_id="t", meter="n", quantity=2)]

    (asked,), found = carry_out(quotas.validate_many(checks), {"data": [decision(), decision()]})

    assert [one["quantity"] for one in json.loads(asked.body or b"")] == ["1", "2"]
    assert len(found) == 2


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=8))
def test_lines_are_those_of_the_whole_text_wherever_it_is_cut(text: bytes, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(text)]
    lines = Lines()
    found = [line for start, end in pairwise(bounds) for line in lines.of(text[start:end])]
    found += lines.rest()

    assert found == text.splitlines(keepends=True) or b"\r" in text
    assert b"".join(found) == text
    assert all(line.find(b"\n") in {len(line) - 1, -1} for line in found)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"api_key": None}, "METERING_API_KEY"),
        ({"url": "ftp://x"}, "it must be a URL"),
        ({"url": "http://"}, "it must be a URL"),
        ({"timeout": 0}, "number of seconds above 0"),
        ({"max_retries": -1}, "whole number above -1"),
        ({"api_key": "k\n"}, "printable ASCII"),
    ],
)
def test_a_setting_that_is_wrong_is_named(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], said: str
) -> None:
    for name in ("METERING_API_KEY", "METERING_API_URL", "METERING_CERTIFICATE_FILE"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(ConfigurationError, match=said):
        read_client_settings(**{"api_key": "k", **arguments})


def test_an_argument_beats_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METERING_API_URL", "http://variable:1/")
    monkeypatch.setenv("METERING_API_KEY", "of the variable")

    assert read_client_settings().url == "http://variable:1"
    assert read_client_settings(url="http://argument:2").url == "http://argument:2"
    assert "of the variable" not in repr(read_client_settings())


def test_every_listing_reads_on_with_its_own_parameters() -> None:
    listing = operations.iter_events(tenant_id="t", page_size=2)
    page: Callable[[str | None], Answer] = lambda cursor: answer(  # noqa: E731
        200, {"data": [], "next_cursor": cursor}
    )

    assert listing.page(page("c")).next_cursor == "c"
    assert listing.page(page(None)).next_cursor is None
    assert list(listing.behind("c").parameters) == [
        ("tenant_id", "t"),
        ("limit", "2"),
        ("cursor", "c"),
    ]
