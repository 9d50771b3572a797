"""Corrections while INSERTs fail and receivers restart: raw events and every rollup agree with a plain list."""

import random
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from otel_metering.errors import UnavailableError
from receiver.store import tables
from tests.integration.machine import (
    FORMATS,
    Cell,
    Faults,
    Machine,
    all_equal,
    event,
    new_machine,
    written,
)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Machine, Faults]:
    return new_machine(tmp_path, monkeypatch)


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
        # Beside the writer's, there are those of the keys that were used.
        of_usage = {tables.EVENTS, tables.EVENT_CORRECTIONS}
        batches = [(table, token) for table, token in failing.inserted if table in of_usage]
        assert batches[0][0] == tables.EVENTS, "what counts instead is there before its correction"
        assert len({token for _, token in batches}) == 1


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
