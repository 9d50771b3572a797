"""Voided and corrected events: counted once, in every window, whatever fails, and never again."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID

import httpx
import pytest

from otel_metering.clock import SystemClock
from otel_metering.contract.meter import Signal
from otel_metering.errors import InvalidUsageError
from receiver.admit import MicroBatch, Outcome
from receiver.exposition import exposition
from receiver.ingest import Work
from receiver.restore import restore_states
from receiver.rows import EventColumns
from receiver.store import tables
from receiver.store.corrections import Correction, EventRow
from receiver.store.keys import Scope
from receiver.usage import Sender
from tests.integration.machine import (
    AT,
    SENDER,
    Faults,
    Machine,
    all_equal,
    event,
    new_machine,
    written,
)
from tests.otlp import NOON, Data, data_request, spans_request
from tests.prometheus import by, parse, total
from tests.waiting import eventually

DEFINITIONS = (
    "  - {slug: calls, group_by: [region]}",
    "  - {slug: people, aggregation: unique_count, value: user, group_by: []}",
    "  - {slug: sizes, source: {signal: metric, name: sizes}, value: sum, group_by: [region]}",
    "  - {slug: spans, source: {signal: span}, aggregation: count, group_by: [region]}",
)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Machine, Faults]:
    return new_machine(tmp_path, monkeypatch, DEFINITIONS)


@pytest.fixture
def machine(made: tuple[Machine, Faults]) -> Iterator[Machine]:
    with made[0].running() as running:
        yield running


def test_a_voided_event_is_in_no_window_and_still_there(machine: Machine) -> None:
    machine.send(event("one", "2.5"), event("two", "4"))
    machine.write()

    answer = written(machine, machine.void("one", reason="sent by a test"))

    uuid, key_id = answer.pop("uuid"), answer.pop("key_id")
    assert datetime.fromisoformat(answer.pop("corrected_at")).year >= 2026
    assert answer == {
        "event_id": "one",
        "action": "void",
        "reason": "sent by a test",
        "replaced_by": None,
    }
    all_equal(machine, {"eu": ("4", 1)})
    one, two = sorted(machine.events(), key=lambda found: found["event_id"])
    assert (one["uuid"], one["status"], two["status"]) == (uuid, "voided", "counted")
    assert one["correction"] | {"corrected_at": None} == {
        "action": "void",
        "reason": "sent by a test",
        "corrected_at": None,
        "key_id": key_id,
        "replaced_by": None,
    }
    assert two["correction"] is None


def test_a_corrected_event_counts_as_what_replaced_it(machine: Machine) -> None:
    sent = event("one", "2.5", attributes={"region": "eu", "plan": "pro", "old": "x"})
    machine.send(sent)
    machine.write()

    answer = written(
        machine,
        machine.correct(
            "one",
            quantity="0.000000001",
            timestamp="2026-03-05T01:02:03.000000004Z",
            attributes={"region": "us", "old": None, "n": 1.5},
        ),
    )

    before, now = machine.events()
    assert (before["status"], now["status"]) == ("corrected", "counted")
    assert before["correction"]["replaced_by"] == now["uuid"] == answer["replaced_by"]
    assert (now["event_id"], now["quantity"]) == ("one", "0.000000001")
    assert now["timestamp"] == "2026-03-05T01:02:03.000000004Z"
    assert now["dimensions"] == {"region": "us"}
    assert now["attributes"] == {
        "region": "us",
        "plan": "pro",
        "n": "1.5",
        "metering.event.id": "one",
    }
    all_equal(machine, {"us": ("0.000000001", 1)})
    shown = machine.client.get("/v1/meter/events/one").json()
    assert shown == now
    by_uuid = machine.client.get(f"/v1/meter/events/{before['uuid']}").json()
    assert by_uuid == before


def test_what_is_not_said_stays_as_it_was(machine: Machine) -> None:
    machine.send(event("one", "2.5"))
    machine.write()

    written(machine, machine.correct("one", quantity=3))
    written(machine, machine.correct("one", timestamp="2026-02-02T00:00:00Z"))
    written(machine, machine.correct("one", attributes={"region": "ap"}))

    assert [one["status"] for one in machine.events()].count("corrected") == 3
    all_equal(machine, {"ap": ("3", 1)})
    assert machine.client.get("/v1/meter/events/one").json()["timestamp"] == "2026-02-02T00:00:00Z"


def test_the_same_request_again_changes_nothing_and_answers_as_the_first_time(
    machine: Machine,
) -> None:
    machine.send(event("v"), event("c"))
    machine.write()
    uuid = machine.client.get("/v1/meter/events/c").json()["uuid"]

    first = [machine.void("v"), machine.correct("c", quantity="7")]
    machine.write()
    again = [machine.void("v"), machine.correct("c", quantity="7")]
    by_uuid = machine.correct(uuid, quantity="7.0")

    assert [one.json() for one in again] == [one.json() for one in first]
    assert by_uuid.json() == first[1].json()
    assert machine.receiver.spool.entry_count == 0
    all_equal(machine, {"eu": ("7", 1)})


def test_what_does_not_count_any_more_cannot_be_corrected(machine: Machine) -> None:
    machine.send(event("v"), event("c"))
    machine.write()
    uuid = machine.client.get("/v1/meter/events/c").json()["uuid"]
    written(machine, machine.void("v"))
    replaced_by = written(machine, machine.correct("c", quantity="7"))["replaced_by"]

    void = machine.correct("v", quantity="2")
    others = [
        machine.correct(uuid, quantity="8"),
        machine.correct(uuid, quantity="7", reason="another"),
        machine.correct(uuid, quantity="7", attributes={"region": "us"}),
        machine.void(uuid),
    ]

    assert void.status_code == 409
    assert "send a new event" in void.json()["detail"]
    assert {one.status_code for one in others} == {409}
    assert all(replaced_by in one.json()["detail"] for one in others)
    all_equal(machine, {"eu": ("7", 1)})


def test_a_sender_that_sends_again_is_not_counted_again_also_after_a_restart(
    made: tuple[Machine, Faults],
) -> None:
    machine, _ = made
    sent = [event("v", "2"), event("c", "3")]
    with machine.running():
        machine.send(*sent)
        machine.write()
        written(machine, machine.void("v"))
        assert machine.correct("c", quantity="5").status_code == 200
        assert machine.send(*sent)["duplicates"] == 2
    with machine.running():  # the second correction is in the spool alone
        assert machine.send(*sent)["duplicates"] == 2
        machine.write()
    with machine.running():
        assert machine.send(*sent)["duplicates"] == 2
        assert machine.void("v").status_code == 200
        assert machine.correct("c", quantity="5").status_code == 200
        assert machine.receiver.spool.entry_count == 0
        all_equal(machine, {"eu": ("5", 1)})


def test_a_correction_that_waits_in_the_spool_is_known_after_a_restart(
    made: tuple[Machine, Faults], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, _ = made
    monkeypatch.setattr("query_api.correcting.WAIT_SECONDS", 0.1)
    with machine.running():
        machine.send(event("v", "2"))
        machine.write()
        assert machine.void("v").status_code == 200
        # It is not made a second time; how it was made the database cannot say yet.
        assert machine.void("v").status_code == 503
    with machine.running():
        assert machine.void("v").status_code == 503
        machine.write()
        assert machine.void("v").status_code == 200
        all_equal(machine, {})
        assert len(machine.client.get("/v1/meter/corrections").json()["data"]) == 1


def test_the_receiver_knows_every_corrected_event_after_a_restart_whoever_asks(
    made: tuple[Machine, Faults],
) -> None:
    """The ingest thread decides by its memory alone: a request that has not seen the first changes nothing."""
    machine, _ = made
    decisions: list[Correction] = []
    with machine.running():
        machine.send(event("stored", "2"), event("spooled", "3"))
        machine.write()
        submit = machine.receiver.ingest.submit

        def note(work: Work) -> Future[Outcome]:
            if work.correction is not None:
                decisions.append(work.correction)
            return submit(work)

        machine.receiver.ingest.submit = note  # type: ignore[method-assign]
        written(machine, machine.void("stored"))
        assert machine.correct("spooled", quantity="5").status_code == 200
    with machine.running():
        for decision in decisions:
            work = Work(sender=SENDER, signal=Signal.EVENT, correction=decision)
            outcome = machine.receiver.ingest.submit(work).result(20)
            assert (outcome.corrected, outcome.corrected_before, outcome.accepted) == (0, 1, 0)
        machine.write()
        all_equal(machine, {"eu": ("5", 1)})
        samples = parse(exposition(machine.receiver.telemetry.read()))
        refused = "otel_metering_receiver_ingest_corrections_refused_total"
        assert by(samples, refused, "reason") == {"corrected_before": 2}


def test_two_corrections_of_an_event_in_one_micro_batch_are_one(machine: Machine) -> None:
    machine.send(event("one", "2"))
    machine.write()
    [row] = machine.events()
    found = EventRow(
        event_id=UUID(row["uuid"]),
        tenant_id="a",
        meter="calls",
        quantity=Decimal(2),
        observations=1,
        unique_key="",
        timestamp_ns=int(datetime.fromisoformat(AT).timestamp()) * 10**9,
        start_ns=0,
        dimensions=row["dimensions"],
        attributes=row["attributes"],
        service_name="",
        signal="event",
        trace_id="",
        span_id="",
    )
    correction = Correction(
        event=found, reason="x", replacement=None, key_id="k", corrected_at_ms=1
    )
    ingest = machine.receiver.ingest
    batch = MicroBatch(
        ingest._metering,
        ingest._seen,
        ingest._accumulators,
        now_ns=SystemClock().now_ns(),
        new_id=lambda: bytes(16),
    )

    for _ in range(2):
        batch.add_correction(correction, SENDER)
    with pytest.raises(InvalidUsageError, match="bound to 'b'"):
        batch.add_correction(
            replace(correction, event=replace(found, event_id=UUID(int=1))),
            Sender(key_id="k", bound_tenant="b"),
        )
    admitted = batch.admit()

    assert [one.corrected for one in admitted.outcomes] == [1, 0]
    assert len(admitted.corrections) == 1


def test_an_event_that_is_on_its_way_into_the_database_is_waited_for(machine: Machine) -> None:
    machine.send(event("late"))
    answers: list[httpx.Response] = []

    asking = Thread(target=lambda: answers.append(machine.void("late")))
    asking.start()
    eventually(lambda: machine.receiver.spool.entry_count, lambda count: count > 0)
    machine.write()
    asking.join()
    machine.write()

    assert answers[0].status_code == 200
    all_equal(machine, {})


def test_an_event_that_is_nowhere_is_not_found(machine: Machine) -> None:
    answers = [
        machine.void("nothing"),
        machine.void(str(UUID(int=5)), tenant_id="a", meter="calls"),
        machine.client.get("/v1/meter/events/a/b"),
    ]

    assert [one.status_code for one in answers] == [404] * 3
    assert "send the same request again" in answers[0].json()["detail"]


def test_an_id_that_several_events_have_needs_the_tenant_or_the_meter(machine: Machine) -> None:
    machine.send(
        event("same"), event("same", meter="other"), event("same", tenant_id="b"), event("b/c")
    )
    machine.write()

    def missing(**more: str) -> str:
        response = machine.void("same", **more)
        assert response.status_code == 409
        return str(response.json()["detail"])

    assert "tenant_id and meter" in missing()
    assert "say also meter," in missing(tenant_id="a")
    assert "say also tenant_id," in missing(meter="calls")
    assert machine.void("same", tenant_id="b").status_code == 200
    assert machine.void("b/c").status_code == 200, "an id may have a slash"
    params = {"tenant_id": "a", "meter": "other"}
    assert machine.client.get("/v1/meter/events/same", params=params).json()["meter"] == "other"


def test_a_key_of_a_tenant_does_not_learn_of_others(machine: Machine) -> None:
    machine.send(event("hers", tenant_id="b"), event("his"))
    machine.write()
    uuid = machine.client.get("/v1/meter/events/hers").json()["uuid"]
    bound = machine.client_of(Scope.ADMIN, tenant_id="a")

    for event_id in ("hers", uuid):
        for more in ({}, {"tenant_id": "b"}):
            path, body = f"/v1/meter/events/{event_id}", {"reason": "x", **more}
            answers = [
                bound.get(path, params=more),
                bound.post(f"{path}/void", json=body),
                bound.post(f"{path}/correct", json={**body, "quantity": "1"}),
            ]
            assert [one.status_code for one in answers] == [404] * 3
    assert bound.post("/v1/meter/events/his/void", json={"reason": "x"}).status_code == 200
    machine.write()
    assert machine.void("hers").status_code == 200
    machine.write()
    assert [one["tenant_id"] for one in bound.get("/v1/meter/corrections").json()["data"]] == ["a"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"reason": ""}, "reason"),
    ({"reason": "x" * 501}, "reason"),
    ({"reason": "x"}, "changes nothing"),
    ({"reason": "x", "quantity": "1e99"}, "quantity"),
    ({"reason": "x", "quantity": "0.0000000001"}, "9 decimal places"),
    ({"reason": "x", "quantity": True}, "quantity"),
    ({"reason": "x", "timestamp": "1999-01-01T00:00:00Z"}, "2000"),
    ({"reason": "x", "timestamp": "now"}, "RFC 3339"),
    ({"reason": "x", "attributes": {"tenant.id": "b"}}, "reserved"),
    ({"reason": "x", "attributes": {"metering.event.id": "b"}}, "reserved"),
    ({"reason": "x", "quantity": "1", "units": "1"}, "units"),
]


def test_a_correction_that_cannot_be_says_why(machine: Machine) -> None:
    machine.send(event("one"))
    machine.write()

    for body, said in REFUSED:
        response = machine.client.post("/v1/meter/events/one/correct", json=body)
        assert response.status_code == 400, body
        assert said in response.json()["detail"], body

    assert machine.receiver.spool.entry_count == 0
    all_equal(machine, {"eu": ("1", 1)})


def test_every_kind_of_event_can_be_taken_back_and_replaced(machine: Machine) -> None:
    tagged = {"tenant.id": "a", "region": "eu"}
    histogram = replace(Data("histogram", 7.5, count=3, at_ns=NOON), attributes=tagged)
    counter = replace(
        Data("sum", 5, at_ns=NOON, start_ns=NOON - 100, temporality=2),
        attributes=tagged,
    )
    for point in (histogram, counter, replace(counter, value=9, at_ns=NOON + 1)):
        body = data_request([point], name="sizes").SerializeToString()
        machine.send_otlp(Signal.METRIC, body)
    span = spans_request([tagged], first_id=1, end_ns=NOON).SerializeToString()
    machine.send_otlp(Signal.SPAN, span)
    machine.write()
    before = {(one["meter"], one["quantity"]): one for one in machine.events()}
    assert [key for key in before if key[0] == "sizes"] == [
        ("sizes", "7.5"),
        ("sizes", "5"),
        ("sizes", "4"),
    ]
    states = restore(machine)

    written(machine, machine.correct(before["sizes", "7.5"]["uuid"], quantity="6"))
    written(machine, machine.void(before["sizes", "5"]["uuid"]))
    written(machine, machine.correct(before["sizes", "4"]["uuid"], attributes={"region": "us"}))
    [of_span] = [one for one in before.values() if one["meter"] == "spans"]
    written(machine, machine.correct(of_span["uuid"], timestamp="2026-03-01T00:00:00Z"))

    now = [one for one in machine.events() if one["status"] == "counted"]
    moved = next(one for one in now if one["meter"] == "spans")
    assert (moved["trace_id"], moved["span_id"]) == (of_span["trace_id"], of_span["span_id"])
    assert length(moved) == length(of_span)
    for cells in machine.rollups():
        of_sizes = {dict(c[3])["region"]: v for c, v in cells.items() if c[1] == "sizes"}
        assert of_sizes == {"eu": (Decimal(6), 3), "us": (Decimal(4), 1)}
        assert [v[1] for c, v in cells.items() if c[1] == "spans"] == [1]
    assert restore(machine) == states, "how far a counter was counted is not changed by it"
    assert machine.send_otlp(Signal.SPAN, span).duplicates == 1


def restore(machine: Machine) -> list[tuple[bytes, bytes]]:
    """What a receiver would know of its cumulative series had it lost its spool."""

    class Lost:
        def __init__(self) -> None:
            self.states: list[tuple[bytes, bytes]] = []

        def has_states(self) -> bool:
            return False

        def append(self, _: object, states: Sequence[tuple[bytes, bytes]]) -> None:
            self.states = sorted(states)

    lost = Lost()
    restore_states(machine.receiver.store, lost)  # type: ignore[arg-type]
    return lost.states


def length(shown: dict[str, Any]) -> float:
    begin, end = (datetime.fromisoformat(shown[name]) for name in ("start_time", "timestamp"))
    return (end - begin).total_seconds()


def test_a_unique_key_follows_the_attributes(machine: Machine) -> None:
    machine.send(event("one", meter="people", attributes={"user": "ann"}))
    machine.write()

    written(machine, machine.correct("one", attributes={"user": "bob"}))

    keys = machine.receiver.store.query(
        f"SELECT unique_key FROM {tables.EVENTS} "
        f"WHERE event_id NOT IN (SELECT event_id FROM {tables.EVENT_CORRECTIONS})"
    )
    assert [tuple(row) for row in keys] == [("bob",)]


def test_who_counts_usage_is_told_what_is_taken_back(machine: Machine) -> None:
    told: list[EventColumns] = []
    machine.send(event("one", "2.5"), event("two"))
    machine.write()
    machine.receiver.ingest.tell(lambda _, parts: told.append(parts[-1]))

    machine.void("one")
    machine.correct("two", quantity="3")

    assert [
        (
            columns.series[0].tenant_id,
            columns.series[0].meter,
            columns.series[0].dimensions,
            columns.whole[0] + Decimal(int(columns.nano[0])) / 10**9,
            columns.observations[0],
        )
        for columns in told
    ] == [
        ("a", "calls", (("region", "eu"),), Decimal("-2.5"), -1),
        ("a", "calls", (("region", "eu"),), Decimal(-1), -1),
    ]


def test_a_quota_follows_also_if_it_is_counted_before_the_correction_is_inserted(
    machine: Machine,
) -> None:
    def used() -> str:
        check = {"tenant_id": "a", "meter": "calls", "quantity": "0"}
        answer = machine.client.post("/v1/meter/validate", json=check)
        return str(answer.json()["used"])

    machine.send(event("one", "2.5"), event("two", "4"), event("three", "8"))
    machine.write()
    machine.void("one")
    machine.correct("two", quantity="3")
    quota = {"tenant_id": "a", "meter": "calls", "limit": "100", "period": "lifetime"}
    assert machine.client.put("/v1/meter/quotas", json=quota).status_code == 200

    assert used() == "11"  # from the database, and from what waits in the spool
    assert machine.void("three").status_code == 200
    assert used() == "3"  # as it is acknowledged
    machine.write()
    assert used() == "3"


def test_who_fails_to_listen_costs_no_correction(machine: Machine) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    machine.receiver.ingest.tell(fail)
    machine.send(event("one"))
    machine.write()

    assert machine.void("one").status_code == 200
    machine.write()
    all_equal(machine, {})


def test_corrections_are_counted(machine: Machine) -> None:
    machine.send(event("one"), event("two"))
    machine.write()
    services = machine.receiver.telemetry
    written(machine, machine.correct("one", quantity="3"))
    written(machine, machine.void("two"))

    samples = parse(exposition(services.read()))

    def count(name: str) -> float:
        return total(samples, f"otel_metering_receiver_{name}_total")

    assert count("ingest_corrections_in") == count("ingest_corrections_out") == 2
    assert count("ingest_in") == count("ingest_out") == 3
    assert count("spool_in") == count("writer_out") == 5


def test_corrections_are_listed_page_by_page_the_latest_first(machine: Machine) -> None:
    machine.send(*(event(f"e{i}", tenant_id="ab"[i % 2]) for i in range(5)))
    machine.write()
    for i in range(5):
        assert machine.void(f"e{i}", reason=f"because {i}").status_code == 200
    machine.write()

    found: list[dict[str, Any]] = []
    asked: dict[str, Any] = {"limit": 2}
    while True:
        page = machine.client.get("/v1/meter/corrections", params=asked).json()
        found += page["data"]
        if page["next_cursor"] is None:
            break
        asked["cursor"] = page["next_cursor"]

    assert sorted(one["reason"] for one in found) == [f"because {i}" for i in range(5)]
    times = [datetime.fromisoformat(one["corrected_at"]) for one in found]
    assert times == sorted(times, reverse=True)
    only = machine.client.get("/v1/meter/corrections", params={"tenant_id": "b"}).json()["data"]
    assert {one["reason"] for one in only} == {"because 1", "because 3"}
