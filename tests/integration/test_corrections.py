"""Voided and corrected events: counted once, in every window, whatever fails, and never again."""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import UUID

import httpx
import pytest

from otel_metering.clock import SystemClock
from otel_metering.contract.meter import Signal
from otel_metering.errors import InvalidUsageError, UnavailableError
from receiver.admit import MicroBatch, Outcome
from receiver.exposition import exposition
from receiver.ingest import Work
from receiver.restore import restore_states
from receiver.rows import EventColumns
from receiver.store import tables
from receiver.store.corrections import Correction, EventRow
from receiver.store.keys import Scope
from receiver.usage import Sender
from tests.integration.machine import FORMATS, SENDER, Cell, Faults, Machine, new_machine
from tests.otlp import NOON, Data, data_request, spans_request
from tests.prometheus import by, parse, total
from tests.waiting import eventually

DEFINITIONS = (
    "  - {slug: calls, group_by: [region]}",
    "  - {slug: people, aggregation: unique_count, value: user, group_by: []}",
    "  - {slug: sizes, source: {signal: metric, name: sizes}, value: sum, group_by: [region]}",
    "  - {slug: spans, source: {signal: span}, aggregation: count, group_by: [region]}",
)
AT = "2026-02-01T12:00:00Z"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Machine, Faults]:
    return new_machine(tmp_path, monkeypatch, DEFINITIONS)


@pytest.fixture
def machine(made: tuple[Machine, Faults]) -> Iterator[Machine]:
    with made[0].running() as running:
        yield running


def event(event_id: str, quantity: str = "1", **more: Any) -> dict[str, Any]:
    return {
        "tenant_id": "a",
        "meter": "calls",
        "event_id": event_id,
        "quantity": quantity,
        "timestamp": AT,
        "attributes": {"region": "eu"},
    } | more


def written(machine: Machine, response: httpx.Response) -> dict[str, Any]:
    """The answer to a correction, and then it is in the database."""
    assert response.status_code == 200, response.text
    machine.write()
    answer: dict[str, Any] = response.json()
    return answer


def all_equal(machine: Machine, expected: dict[str, tuple[str, int]]) -> None:
    """Raw events and rollups have these (sum, count) of each region, and nothing else."""
    for cells in machine.rollups():
        found = {dict(cell[3]).get("region", ""): value for cell, value in cells.items()}
        assert found == {key: (Decimal(q), n) for key, (q, n) in expected.items()}


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
    with machine.running():
        again = machine.void("v")
        machine.write()
        assert again.status_code == 503, (
            "it is not made a second time; the database cannot say how yet"
        )
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


@pytest.mark.parametrize(
    "faults",
    [
        ["before"],
        ["after"],
        ["none", "before"],
        ["none", "after"],
        ["none", "after", "after", "before", "none", "before"],
        ["after", "before", "none", "none"],
    ],
)
@pytest.mark.parametrize("is_restarted", [False, True])
def test_inserts_of_unknown_outcome_are_repeated_and_count_once(
    made: tuple[Machine, Faults], faults: list[str], is_restarted: bool
) -> None:
    """The first INSERT is that of the replacement, the second that of the correction."""
    machine, failing = made
    with machine.running():
        machine.send(event("one", "2"), event("two", "4"))
        machine.write()
        assert machine.correct("one", quantity="3").status_code == 200
        assert machine.void("two").status_code == 200
        failing.next, failing.inserted = list(faults), []
        while failing.next and not is_restarted:
            machine.write()
        if is_restarted:
            with suppress(UnavailableError):
                machine.receiver.writer.write_batch()
    if is_restarted:
        failing.next = []
    with machine.running():
        machine.write()
        all_equal(machine, {"eu": ("3", 1)})
        named = [table for table, _ in failing.inserted]
        assert named[0] == tables.EVENTS, "what counts instead is there before its correction"
        assert len({token for _, token in failing.inserted}) == 1


def test_without_the_token_a_correction_would_be_taken_back_twice(
    made: tuple[Machine, Faults],
) -> None:
    """The control: the test above fails when the token is not kept."""
    machine, failing = made
    with machine.running():
        machine.send(event("one", "2"))
        machine.write()
        assert machine.void("one").status_code == 200
        failing.next = ["after"]
        with pytest.raises(UnavailableError, match="lost"):
            machine.receiver.writer.write_batch()
        machine.receiver.spool._db.execute("UPDATE sealed SET token = ?", ("0" * 32,))
        machine.write()

        minutes = machine.rollups()[1]
        assert list(minutes.values()) == [(Decimal(-2), -1)]


def test_a_replacement_whose_correction_was_lost_is_not_counted_twice(
    made: tuple[Machine, Faults], tmp_path: Path
) -> None:
    """The spool goes away between the two INSERTs; then the same correction is asked for again."""
    machine, failing = made
    with machine.running():
        machine.send(event("one", "2"))
        machine.write()
        assert machine.correct("one", quantity="3").status_code == 200
        failing.next = ["none", "before"]
        with pytest.raises(UnavailableError, match="lost"):
            machine.receiver.writer.write_batch()
    (tmp_path / "data" / "spool" / "receiver.db").rename(tmp_path / "lost")
    (tmp_path / "data" / "spool" / "receiver.db.lock").unlink()
    failing.next = []
    with machine.running():
        # Two rows count, the original and its replacement, until the correction is repeated.
        original = next(one for one in machine.events() if one["quantity"] == "2")
        other = machine.correct(original["uuid"], quantity="4")
        assert other.status_code == 400
        written(machine, machine.correct(original["uuid"], quantity="3"))

        all_equal(machine, {"eu": ("3", 1)})


def test_who_counts_usage_is_told_what_is_taken_back(machine: Machine) -> None:
    told: list[EventColumns] = []
    machine.receiver.ingest._on_corrected = told.append
    machine.send(event("one", "2.5"), event("two"))
    machine.write()

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


def test_who_fails_to_listen_costs_no_correction(machine: Machine) -> None:
    def fail(_: EventColumns) -> None:
        raise ZeroDivisionError

    machine.receiver.ingest._on_corrected = fail
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


# What a plain list of events says, beside raw events and all rollups.


@dataclass
class Piece:
    """One event of the oracle."""

    tenant: str
    meter: str
    at: datetime
    quantity: Decimal
    observations: int
    region: str
    counts: bool = True


@dataclass
class Oracle:
    pieces: dict[str, Piece] = field(default_factory=dict)

    def cells(self, window: str) -> dict[Cell, tuple[Decimal, int]]:
        found: dict[Cell, tuple[Decimal, int]] = {}
        for one in self.pieces.values():
            if one.counts:
                cell = one.tenant, one.meter, one.at.strftime(window), (("region", one.region),)
                total, count = found.get(cell, (Decimal(0), 0))
                found[cell] = total + one.quantity, count + one.observations
        return {cell: value for cell, value in found.items() if any(value)}


class Story:
    """A random sequence of events, voids, corrections, failures and restarts."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.oracle = Oracle()
        self._sent: list[dict[str, Any]] = []

    def life(self, machine: Machine, faults: Faults) -> None:
        """Until a restart."""
        for _ in range(self.chance.randrange(10, 25)):
            faults.next = self.chance.choices(["none", "before", "after"], [4, 1, 1], k=4)
            self.chance.choices(
                [self._send, self._send_again, self._void, self._correct, self._write],
                [4, 1, 2, 3, 2],
            )[0](machine)

    def _send(self, machine: Machine) -> None:
        batch = []
        for _ in range(self.chance.randrange(1, 6)):
            number, at = len(self.oracle.pieces), self._moment()
            piece = Piece(
                self.chance.choice("ab"), "calls", at, self._quantity(), 1, self._region()
            )
            self.oracle.pieces[f"e{number}"] = piece
            batch.append(
                event(
                    f"e{number}",
                    str(piece.quantity),
                    tenant_id=piece.tenant,
                    timestamp=at.isoformat(),
                    attributes={"region": piece.region},
                )
            )
        self._sent += batch
        assert machine.send(*batch)["accepted"] == len(batch)

    def _send_again(self, machine: Machine) -> None:
        if self._sent:
            again = self.chance.choices(self._sent, k=3)
            assert machine.send(*again)["duplicates"] == 3

    def _void(self, machine: Machine) -> None:
        event_id = self._any()
        if event_id is None:
            return
        machine.write()
        piece = self.oracle.pieces[event_id]
        response = machine.void(event_id, tenant_id=piece.tenant, meter=piece.meter)
        assert response.status_code == 200, response.text
        piece.counts = False
        self._perhaps_again(machine, event_id)

    def _perhaps_again(self, machine: Machine, event_id: str) -> None:
        if self.chance.random() < 0.3:
            machine.write()
            assert machine.void(event_id).status_code == 200

    def _correct(self, machine: Machine) -> None:
        event_id = self._any()
        if event_id is None:
            return
        machine.write()
        piece = self.oracle.pieces[event_id]
        change: dict[str, Any] = {}
        new = replace(piece)
        if self.chance.random() < 0.7:
            new.quantity = self._quantity()
            change["quantity"] = str(new.quantity)
        if self.chance.random() < 0.4 or not change:
            new.at = self._moment()
            change["timestamp"] = new.at.isoformat()
        if self.chance.random() < 0.4:
            new.region = self._region()
            change["attributes"] = {"region": new.region}
        response = machine.correct(event_id, reason=f"{self.chance.random()}", **change)
        assert response.status_code == (200 if piece.counts else 409), response.text
        if piece.counts:
            self.oracle.pieces[event_id] = new

    def _write(self, machine: Machine) -> None:
        machine.write()

    def _any(self) -> str | None:
        return self.chance.choice(list(self.oracle.pieces)) if self.oracle.pieces else None

    def _quantity(self) -> Decimal:
        return Decimal(self.chance.randrange(-(10**6), 10**12)).scaleb(-self.chance.randrange(10))

    def _region(self) -> str:
        return self.chance.choice(["eu", "us", "ap"])

    def _moment(self) -> datetime:
        return datetime(2025, 12, 31, 22, tzinfo=UTC).replace(
            minute=self.chance.randrange(60),
            hour=self.chance.choice([21, 22, 23]),
            day=self.chance.choice([30, 31]),
        )


@pytest.mark.parametrize("seed", range(6))
def test_events_minus_corrections_are_what_every_window_says(
    made: tuple[Machine, Faults], seed: int
) -> None:
    machine, faults = made
    story = Story(seed)
    for _ in range(3):
        with machine.running():
            story.life(machine, faults)
            faults.next = []
    with machine.running():
        machine.write()
        found = machine.rollups()

    expected = [cells for window in FORMATS for cells in [story.oracle.cells(window)] * 2]
    assert found == expected
