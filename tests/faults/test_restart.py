"""A batch that is sent again by the next process counts once, whatever the process before it had migrated."""

import json
import pickle
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from otel_metering.spool import open_spool
from receiver import rows
from receiver.store.migrate import shipped
from tests.integration.test_writer import points_of, put

PROCESS = """
import json, pickle, sys
from receiver.store import migrate, tables
from receiver.store.client import Store
from otel_metering.clock import SystemClock
folder, known = sys.argv[1], int(sys.argv[2])
store, table = Store(f"chdb://{folder}/engine"), pickle.load(open(f"{folder}/table", "rb"))
every = migrate.shipped()
migrate.shipped = lambda: every[:known]
migrate.migrate(store, SystemClock())
columns = {name for (name,) in store.query(
    "SELECT name FROM system.columns WHERE database = 'metering' AND table = 'events'"
)}
table = table.select([name for name in table.column_names if name in columns])
store.insert(tables.EVENTS, table, token="the same token")
print(json.dumps([store.query("SELECT count() FROM metering.events")[0][0]] + [
    int(store.query(f"SELECT sum(toInt64(quantity_count)) FROM {name}")[0][0]) for name in tables.ROLLUPS
]))
store.close()
"""


@pytest.mark.parametrize("known", range(8, len(shipped()) + 1))
def test_a_batch_sent_again_after_a_migration_and_after_a_restart_counts_once(
    tmp_path: Path, known: int
) -> None:
    """First by a release with so many migrations, then twice by this one."""
    with closing(open_spool(tmp_path / "spool.db")) as spool:
        put(spool, points_of("again"))
        table = rows.to_events([entry.payload for entry in spool.entries()], bytes(16))
    (tmp_path / "table").write_bytes(pickle.dumps(table))

    for migrations in (known, len(shipped()), len(shipped())):
        command = [sys.executable, "-c", PROCESS, str(tmp_path), str(migrations)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        assert json.loads(run.stdout) == [100, 100, 100, 100, 100]
