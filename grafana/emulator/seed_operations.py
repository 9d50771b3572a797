"""Deterministic data of an installation at work: what dashboards and alert rules are tried on.

What is written can also be had as values, from which tests compute what a panel has to show.
"""

import json
import uuid
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Decimal
from typing import Final, NamedTuple

import pyarrow as pa

from grafana.emulator import seed_llm, seed_stats
from grafana.emulator.seed_llm import EXPORTED, MODEL, TOKENS, Event
from grafana.emulator.sickness import Sickness
from receiver.store import tables
from receiver.store.client import Store

__all__ = ["Sickness", "seed_operations"]

_SPACE: Final = uuid.UUID("0a6f4c1e-38c7-4f35-9d0d-6c5a7e1b2f43")
_ZERO: Final = Decimal(0)
_DAY: Final = timedelta(days=1)


class Key(NamedTuple):
    """An API key; times are as the row says them."""

    key_id: str
    name: str
    scopes: tuple[str, ...]
    created: datetime
    tenant: str = ""
    expires: datetime | None = None
    revoked: datetime | None = None
    replaces: str = ""
    replaced_ends: datetime | None = None
    last_used: datetime | None = None


class Quota(NamedTuple):
    """One period of a quota of one tenant, as `metering.quota_usage` has it."""

    tenant: str
    meter: str
    quota_id: str
    period: str
    start: datetime
    end: datetime | None
    limit: Decimal
    used: Decimal
    enforcement: str = "hard"
    is_default: bool = False
    filter: dict[str, list[str]] | None = None
    is_deleted: bool = False


class Item(NamedTuple):
    """Something in quarantine, and what became of it; empty: nothing yet."""

    reason: str
    name: str
    tenant: str
    at: datetime
    key_id: str
    resolution: str = ""
    resolved: datetime | None = None

    @property
    def id(self) -> uuid.UUID:
        """The same at every run."""
        return uuid.uuid5(_SPACE, f"{self.reason} {self.name} {self.at}")


def seed_operations(
    store: Store, now: datetime, *, sick: Collection[Sickness] = (), hours: int = 26
) -> None:
    """Write an installation's last day, and five weeks of its tenants' use of language models.

    Args:
        store: Migrated.
        now: The moment that everything leads up to; with a time zone.
        sick: What is wrong; nothing: no alert rule has anything to say.
        hours: How much there is in pipeline_stats, a row for each minute and number.
    """
    seed_llm.seed_llm(store, now, sick=sick)
    seed_stats.seed_stats(store, now, sick=sick, hours=hours)
    _write_keys(store, keys(now, sick), now)
    _write_quotas(store, quotas(now, sick), now)
    _write_quarantine(store, quarantine(now, sick))
    _write_audit(store, now)
    if Sickness.ROLLUP_DRIFT in sick:
        _drift(store, now)


def keys(now: datetime, sick: Collection[Sickness] = ()) -> list[Key]:
    """Every API key."""
    made = now - 200 * _DAY
    soon = now + (2 if Sickness.KEY_EXPIRING in sick else 60) * _DAY
    just, tries = now - timedelta(minutes=1), Sickness.REVOKED_KEY_USED in sick
    return [
        Key("collector", "Collector gateway", ("ingest",), made, last_used=just),
        Key("checkout", "Checkout service", ("ingest", "validate"), made, last_used=just),
        Key("mobile-gateway", "Mobile gateway", ("ingest",), made, expires=soon, last_used=just),
        Key("grafana", "Dashboards", ("query",), made, last_used=just),
        Key(
            "acme-portal",
            "Portal of acme",
            ("query",),
            made,
            "acme",
            now + 90 * _DAY,
            last_used=now - timedelta(minutes=8),
        ),
        Key("platform", "Platform team", ("admin",), made, last_used=now - 2 * _DAY),
        Key("billing-1", "Billing job", ("query",), made, last_used=now - 31 * _DAY),
        Key(
            "billing-2",
            "Billing job",
            ("query",),
            now - 31 * _DAY,
            replaces="billing-1",
            replaced_ends=now - 30 * _DAY,
            last_used=now - timedelta(hours=9),
        ),
        Key("batch-2025", "Nightly import", ("ingest",), made, last_used=now - 45 * _DAY),
        Key("trial", "Trial of hooli", ("query",), made, "hooli", now - 20 * _DAY, None),
        Key(
            "contractor",
            "Contractor",
            ("ingest", "query"),
            made,
            revoked=now - 5 * _DAY,
            last_used=now - 5 * _DAY - timedelta(hours=1 if tries else 2),
        ),
    ]


def quotas(now: datetime, sick: Collection[Sickness] = ()) -> list[Quota]:
    """Every period of every quota: those of now, those of the month before, and one that was deleted."""
    day = now.replace(hour=0, minute=0, second=0, microsecond=0)
    acme, globex, initech = day - 10 * _DAY, day - 28 * _DAY, day - 20 * _DAY
    share = {
        "acme": 0.60 if Sickness.PROJECTED_OVERRUN in sick else 0.20,
        "globex": 0.85 if Sickness.QUOTA_85 in sick else 0.62,
        "initech": 1.20 if Sickness.QUOTA_120 in sick else 0.40,
    }
    events = seed_llm.counted(now, sick)
    found = []
    for tenant, start, enforcement in (
        ("acme", acme, "hard"),
        ("globex", globex, "hard"),
        ("initech", initech, "soft"),
    ):
        used = _used(events, tenant, TOKENS, start)
        limit = _share_of(used, share[tenant])
        end = start + 30 * _DAY
        of = Quota(tenant, TOKENS, f"quota_{tenant}", "month", start, end, limit, used, enforcement)
        # A month ago acme used 5 % more than it might have.
        before = limit * Decimal("1.05" if tenant == "acme" else "0.5")
        found += [of, of._replace(start=start - 30 * _DAY, end=start, used=before)]
    opus = {MODEL: ["claude-opus-4-5"]}
    used = _used(events, "acme", TOKENS, acme, "claude-opus-4-5")
    of_model = found[0]._replace(
        quota_id="quota_acme_opus", filter=opus, used=used, limit=_share_of(used, 0.15)
    )
    lifetime = Quota(
        "umbrella",
        EXPORTED,
        "quota_default",
        "lifetime",
        datetime(1970, 1, 1, tzinfo=UTC),
        None,
        Decimal(500_000_000),
        _used(events, "umbrella", EXPORTED, day - 60 * _DAY),
        "soft",
        is_default=True,
    )
    gone = found[2]._replace(quota_id="quota_gone", used=Decimal(9), limit=Decimal(3))
    return [*found, of_model, lifetime, gone._replace(is_deleted=True)]


def quarantine(now: datetime, sick: Collection[Sickness] = ()) -> list[Item]:
    """Everything that went into quarantine; what is open of it when nothing is wrong is days old."""
    found = []
    for i in range(6):
        at = now - 4 * _DAY + timedelta(minutes=i)
        how = "discarded" if i == 5 else "replayed"
        solved = now - 3 * _DAY
        found.append(Item("no_tenant", "http.requests", "", at, "collector", how, solved))
    for i in range(2):
        at = now - 3 * _DAY - timedelta(minutes=i)
        found.append(Item("no_meter", "disk.io", "globex", at, "collector"))
    names = {"no_tenant": "checkout.orders", "conflict": TOKENS, "tenant_not_allowed": "api.calls"}
    length = 60
    for reason, counts in seed_stats.quarantined(sick, length).items():
        for minute, count in enumerate(counts):
            since = now - timedelta(minutes=length - 1 - minute)
            for i in range(int(count)):
                at = since - timedelta(seconds=3 * i)
                tenant = "" if reason == "no_tenant" else "globex"
                found.append(Item(reason, names[reason], tenant, at, "checkout"))
    return found


def _used(
    events: Iterable[Event], tenant: str, meter: str, start: datetime, model: str = ""
) -> Decimal:
    since = start.timestamp() * 1_000
    return sum(
        (
            Decimal(event.quantity)
            for event in events
            if (event.tenant, event.meter) == (tenant, meter)
            and event.at_ms >= since
            and event.model in (model or event.model)
        ),
        _ZERO,
    )


def _share_of(used: Decimal, share: float) -> Decimal:
    """The limit of which `used` is that share."""
    return (used / Decimal(str(share))).quantize(Decimal(1), ROUND_DOWN)


def _write_keys(store: Store, made: Sequence[Key], now: datetime) -> None:
    # A revocation, and a later use, are later rows: those before are there until the engine merges them.
    store.execute(f"SYSTEM STOP MERGES {tables.API_KEYS}")
    store.execute(f"SYSTEM STOP MERGES {tables.API_KEY_USE}")
    before = [key._replace(revoked=None) for key in made]
    _write_key_rows(store, before, f"keys before {now}")
    _write_key_rows(store, made, f"keys {now}")
    _write_key_use(store, made, timedelta(hours=3), f"key use before {now}")
    _write_key_use(store, made, timedelta(0), f"key use {now}")


def _write_key_rows(store: Store, made: Sequence[Key], token: str) -> None:
    rows = pa.table(
        {
            "key_id": [key.key_id for key in made],
            "name": [key.name for key in made],
            "key_hash": [uuid.uuid5(_SPACE, key.key_id).hex * 2 for key in made],
            "scopes": pa.array([list(key.scopes) for key in made], pa.list_(pa.string())),
            "tenant_id": [key.tenant for key in made],
            "created_at": _times([key.created for key in made]),
            "expires_at": _times([key.expires for key in made]),
            "revoked_at": _times([key.revoked for key in made]),
            "updated_at": _times([key.revoked or key.created for key in made]),
            "rate_limit_per_second": pa.array([0] * len(made), pa.uint32()),
            "replaces": [key.replaces for key in made],
            "replaced_ends_at": _times([key.replaced_ends for key in made]),
        }
    )
    store.insert(tables.API_KEYS, rows, token=token)


def _write_key_use(store: Store, made: Sequence[Key], ago: timedelta, token: str) -> None:
    used = [(key.key_id, key.last_used - ago) for key in made if key.last_used]
    rows = pa.table(
        {
            "key_id": [key_id for key_id, _ in used],
            "last_used_at": _times([at for _, at in used]),
        }
    )
    store.insert(tables.API_KEY_USE, rows, token=token)


def _write_quotas(store: Store, made: Sequence[Quota], now: datetime) -> None:
    store.execute(f"SYSTEM STOP MERGES {tables.QUOTA_USAGE}")
    earlier = [one._replace(used=one.used / 2, is_deleted=False) for one in made]
    _write_quota_usage(store, earlier, now - timedelta(hours=1))
    _write_quota_usage(store, made, now)
    _write_quota_definitions(store, made, now)


def _write_quota_usage(store: Store, made: Sequence[Quota], at: datetime) -> None:
    rows = pa.table(
        {
            "tenant_id": [one.tenant for one in made],
            "meter": [one.meter for one in made],
            "quota_id": [one.quota_id for one in made],
            "is_default": [one.is_default for one in made],
            "filter": [json.dumps(one.filter or {}) for one in made],
            "period": [one.period for one in made],
            "period_start": _times([one.start for one in made], "ms"),
            "period_end": _times([one.end for one in made], "ms"),
            "enforcement": [one.enforcement for one in made],
            "quantity_limit": _decimals([one.limit for one in made]),
            "quantity_grace": _decimals([_ZERO] * len(made)),
            "quantity_used": _decimals([one.used for one in made]),
            "updated_at": _times([at] * len(made), "ms"),
            "is_deleted": [one.is_deleted for one in made],
        }
    )
    store.insert(tables.QUOTA_USAGE, rows, token=f"quota usage {at}")


def _write_quota_definitions(store: Store, made: Sequence[Quota], now: datetime) -> None:
    known = list({one.quota_id: one for one in made}.values())
    since = _times([now - 100 * _DAY] * len(known))
    definitions = pa.table(
        {
            "quota_id": [one.quota_id for one in known],
            "tenant_id": pa.array(
                [None if one.is_default else one.tenant for one in known], pa.string()
            ),
            "meter": [one.meter for one in known],
            "filter": [json.dumps(one.filter or {}) for one in known],
            "quantity_limit": _decimals([one.limit for one in known]),
            "quantity_grace": _decimals([_ZERO] * len(known)),
            "period": [one.period for one in known],
            "anchor_day": pa.array(
                [one.start.day if one.period == "month" else None for one in known], pa.uint8()
            ),
            "timezone": ["UTC"] * len(known),
            "enforcement": [one.enforcement for one in known],
            "thresholds": pa.array([[80, 100]] * len(known), pa.list_(pa.uint16())),
            "is_deleted": [one.is_deleted for one in known],
            "created_at": since,
            "updated_at": since,
        }
    )
    store.insert(tables.QUOTAS, definitions, token=f"quotas {now}")


def _write_quarantine(store: Store, made: Sequence[Item]) -> None:
    rows = pa.table(
        {
            "event_id": _uuids([one.id for one in made]),
            "reason": [one.reason for one in made],
            "detail": [f"{one.reason}; see docs" for one in made],
            "signal": ["metric"] * len(made),
            "name": [one.name for one in made],
            "tenant_id": [one.tenant for one in made],
            "timestamp": _times([one.at for one in made], "ns"),
            "attributes": pa.array([[]] * len(made), pa.map_(pa.string(), pa.string())),
            "service_name": ["checkout"] * len(made),
            "payload": pa.array([b""] * len(made), pa.binary()),
            "key_id": [one.key_id for one in made],
            "ingested_at": _times([one.at for one in made], "ms"),
            "batch_id": _uuids([_SPACE] * len(made)),
        }
    )
    store.insert(tables.QUARANTINE, rows, token=f"quarantine {made[-1].at} {len(made)}")
    solved = [one for one in made if one.resolution]
    rows = pa.table(
        {
            "event_id": _uuids([one.id for one in solved]),
            "resolution": [one.resolution for one in solved],
            "ingested_at": _times([one.at for one in solved], "ms"),
            "resolved_at": _times([one.resolved for one in solved], "ms"),
            "key_id": ["platform"] * len(solved),
            "note": ["the tenant was missing in the sender's settings"] * len(solved),
        }
    )
    store.insert(tables.QUARANTINE_RESOLVED, rows, token=f"resolved {made[-1].at}")


def _write_audit(store: Store, now: datetime) -> None:
    told = (
        (now - 31 * _DAY, "key.rotate", "billing-1", ""),
        (now - 20 * _DAY, "quota.put", "quota_initech", "initech"),
        (now - 5 * _DAY, "key.revoke", "contractor", ""),
        (now - 3 * _DAY, "quarantine.replay", "quarantine", ""),
        (now - timedelta(hours=2), "key.create", "acme-portal", "acme"),
    )
    rows = pa.table(
        {
            "at": _times([at for at, *_ in told]),
            "audit_id": _uuids([uuid.uuid5(_SPACE, f"{one}") for one in told]),
            "key_id": ["platform"] * len(told),
            "action": [action for _, action, _, _ in told],
            "target": [target for _, _, target, _ in told],
            "tenant_id": [tenant for *_, tenant in told],
            "request_id": [""] * len(told),
            "details": pa.array([[]] * len(told), pa.map_(pa.string(), pa.string())),
        }
    )
    store.insert(tables.AUDIT_LOG, rows, token=f"audit {now}")


def _drift(store: Store, now: datetime) -> None:
    """A rollup that has more than the events of two hours ago have."""
    hour = (now - timedelta(hours=2)).replace(minute=0, second=0, microsecond=0)
    store.execute(
        f"INSERT INTO {tables.USAGE_HOUR} "
        "(tenant_id, meter, window_start, dimensions, quantity_sum, quantity_count) "
        "SELECT 'acme', {meter:String}, toDateTime({at:Int64}, 'UTC'), "
        "map({name:String}, 'claude-haiku-4-5'), toDecimal128(7, 9), 1",
        {"meter": TOKENS, "name": MODEL, "at": round(hour.timestamp())},
    )


def _uuids(of: Sequence[uuid.UUID]) -> pa.Array:
    return pa.array([one.bytes for one in of], pa.binary(16))


def _decimals(of: Sequence[Decimal]) -> pa.Array:
    return pa.array(of, pa.decimal128(38, 9))


def _times(of: Sequence[datetime | None], unit: str = "us") -> pa.Array:
    return pa.array(of, pa.timestamp(unit, "UTC"))
