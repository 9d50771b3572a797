"""Users of a ClickHouse server who read the tables by SQL: what they may, as `server/*.sql` says.

The embedded engine has no users of its own: there the query API, or the endpoint for ClickHouse's clients, decides.
"""

import logging
import re
from importlib.resources import files
from string import Template
from typing import Final

from otel_metering.contract.event import check_name
from otel_metering.errors import InvalidUsageError, MeteringError
from receiver.store.client import AccessDeniedError, Store
from receiver.store.migrate import split

GRANT_COMMAND: Final = "otel-metering grants | clickhouse-client --user <administrator> --password"

_USER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

_log = logging.getLogger(__name__)


def reader_sql() -> str:
    """What makes the role `metering_reader` and the user `grafana_reader`."""
    return _read("grafana_reader.sql")


def tenant_reader_sql(tenant_id: str, user: str) -> str:
    """What makes a user who reads the rows of one tenant.

    Raises:
        InvalidUsageError: One of the names cannot be written into SQL as it is, so it is none.
    """
    check_name("tenant", tenant_id)
    if not _USER.fullmatch(user):
        raise InvalidUsageError(
            f"user {user[:64]!r} is not 1 to 64 characters of A-Z a-z 0-9 _, with no digit first; rename it"
        )
    if user in ("grafana_reader", "metering_reader", "metering_everybody", "default"):
        raise InvalidUsageError(f"user {user!r} reads all tenants; choose another name")
    return Template(_read("tenant_reader.sql")).substitute(tenant=tenant_id, user=user)


def prepare_readers(store: Store) -> None:
    """Make `grafana_reader` on a server, or say what to run; the embedded engine is left alone. Raises nothing."""
    if not store.is_embedded:
        grant(store)


def grant(store: Store) -> bool:
    """Run `reader_sql`; False: it could not be done, and the log says what to run instead."""
    for statement in split(reader_sql()):
        try:
            store.execute(statement)
        except AccessDeniedError:
            if _has_reader(store):
                _log.info(
                    "The user grafana_reader is there. After an upgrade its grants are given again by: %s",
                    GRANT_COMMAND,
                    extra={"event": "readers_kept"},
                )
                return False
            _log.warning(
                "The user grafana_reader was not made: the user of METERING_CLICKHOUSE_URL may not do that. "
                "Dashboards need it; run as an administrator: %s (an endpoint of otel-metering has it already)",
                GRANT_COMMAND,
                extra={"event": "readers_denied"},
            )
            return False
        except MeteringError as error:
            _log.warning(
                "The user grafana_reader was not made (%s). Dashboards need it; run as an administrator: %s",
                error,
                GRANT_COMMAND,
                extra={"event": "readers_failed"},
            )
            return False
    return True


def _has_reader(store: Store) -> bool:
    """Whether somebody made it; False also where that may not be seen (grant: SHOW USERS)."""
    try:
        return bool(store.query("SELECT name FROM system.users WHERE name = 'grafana_reader'"))
    except MeteringError:
        return False


def _read(name: str) -> str:
    return files("receiver.store").joinpath("server", name).read_text(encoding="utf-8")
