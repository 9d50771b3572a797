"""The receiver writes what dashboards read: the definitions of meters, and what became of keys."""

from pathlib import Path

from otel_metering.clock import SystemClock
from receiver.app import Receiver
from receiver.auth import authenticate
from receiver.config import Settings
from receiver.store.keys import Scope
from tests.waiting import eventually


def test_the_file_is_written_at_the_start_and_whenever_it_changes_and_so_are_keys(
    tmp_path: Path,
) -> None:
    path = tmp_path / "meters.yaml"
    path.write_text("meters:\n- slug: one\n- slug: two\n")
    receiver = Receiver(Settings(data_dir=tmp_path / "data", meters_file=path), SystemClock())

    def meters() -> set[str]:
        rows = receiver.store.query(
            "SELECT meter FROM metering.meter_definitions FINAL WHERE NOT is_deleted"
        )
        return {str(row[0]) for row in rows}

    receiver.start()
    try:
        eventually(meters, lambda found: found == {"one", "two"})
        path.write_text("meters:\n- slug: three\n")
        receiver.meters_file.reload()
        eventually(meters, lambda found: found == {"three"})
        text = receiver.keys.create(name="n", scopes=[Scope.INGEST])[1]
        authenticate({"x-api-key": text}, receiver.keys, "http")
        receiver.stats.write()
        rows = receiver.store.query(
            "SELECT name, reason, labels['transport'], labels['key_id'] != '', value "
            "FROM metering.pipeline_stats WHERE stage = 'keys' ORDER BY name"
        )
        assert [tuple(row) for row in rows] == [("in", "", "http", 1, 1), ("out", "", "http", 1, 1)]
    finally:
        assert receiver.stop()
