"""What the dashboards about operations show is what the seed says, by Python alone."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from operator import attrgetter

import pytest

from grafana.builders.dashboards import keys, llm, quality, quotas
from grafana.emulator import seed_llm, seed_operations, seed_stats
from grafana.emulator.seed_llm import CACHED, TOKENS, UNDEFINED, Event
from grafana.emulator.seed_operations import Item, Key, Quota
from grafana.emulator.time_range import TimeRange, Value
from receiver.store.client import Store
from tests.grafana.operations import ALL, NOW, SICK, at, last, rows, seeded, total, value

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
EVENTS = seed_llm.events(NOW, SICK)
COUNTED = seed_llm.counted(NOW, SICK)
STATS = seed_stats.stats(NOW, SICK)
QUOTAS = [one for one in seed_operations.quotas(NOW, SICK) if not one.is_deleted]
KEYS = seed_operations.keys(NOW, SICK)
ITEMS = seed_operations.quarantine(NOW, SICK)
LLM, QUOTA, KEY, QUALITY = llm.build(), quotas.build(), keys.build(), quality.build()

approx = pytest.approx


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with seeded(tmp_path_factory.mktemp("sick"), SICK) as store:
        yield store


def windows(hours: float) -> tuple[timedelta, timedelta]:
    """(rollup row, bar) of a time of this length, as the descriptions of the panels say."""
    if hours <= 12:
        return timedelta(minutes=1), timedelta(minutes=1 if hours <= 2 else 10)
    return (HOUR, HOUR) if hours <= 8 * 24 else (DAY, DAY)


def floor(moment: datetime, step: timedelta) -> datetime:
    """Begin of the window that it lies in."""
    since = moment - datetime(2026, 1, 1, tzinfo=NOW.tzinfo)
    return moment - since % step


def drifted(window: timedelta) -> float:
    """How much more than the events rollups of this size have: the seed makes those from the hour on wrong."""
    return 7 if window >= HOUR else 0


def used(
    hours: float, tenants: tuple[str, ...] = (), before: float = 0, meter: str = TOKENS
) -> list[Event]:
    """Events of the windows that a time touches which ended `before` hours ago."""
    step, _ = windows(hours)
    end = NOW - timedelta(hours=before)
    first = floor(end - timedelta(hours=hours), step)
    # The period before is what lies before the first window of this one.
    behind = floor(end, step) if before else NOW + timedelta(seconds=1)
    return [
        event
        for event in COUNTED
        if event.meter == meter
        and (not tenants or event.tenant in tenants)
        and first <= floor(at(event), step) < behind
    ]


@pytest.mark.parametrize("hours", [1, 12, 24, 720])
@pytest.mark.parametrize("tenants", [(), ("globex",), ("globex", "hooli")])
def test_tokens_of_a_time_and_of_the_one_before(
    store: Store, hours: float, tenants: tuple[str, ...]
) -> None:
    chosen: dict[str, Value] = {"tenant": tenants or ALL, "llm_meter": TOKENS}
    now, before = used(hours, tenants), used(hours, tenants, before=hours)
    extra = 0 if tenants else drifted(windows(hours)[0])

    found = rows(store, LLM, "Tokens", last(hours), chosen=chosen)

    assert [row["tokens"] for row in found] == [
        sum(event.quantity for event in before),
        sum(event.quantity for event in now) + extra,
    ][-len(found) :]
    assert len(found) == (2 if before else 1)
    by_type = total(now, lambda event: event.type)
    for title, kind in (("Input tokens", "input"), ("Output tokens", "output")):
        assert rows(store, LLM, title, last(hours), chosen=chosen)[-1]["tokens"] == by_type[kind]
    ratio = value(store, LLM, "Output per input", last(hours), chosen=chosen)
    assert ratio == approx(by_type["output"] / by_type["input"])
    assert value(store, LLM, "Models", last(hours), chosen=chosen) == len(
        {one.model for one in now}
    )
    assert value(store, LLM, "Tenants", last(hours), chosen=chosen) == len(
        {one.tenant for one in now}
    )


def bars(
    chosen: list[Event], bar: timedelta, key: Callable[[Event], str]
) -> dict[tuple[datetime, str], float]:
    """(begin of the bar, name) -> tokens."""
    return total(chosen, lambda event: (floor(at(event), bar), key(event)))


@pytest.mark.parametrize("hours", [1, 12, 24, 720])
def test_tokens_over_time_by_model_type_and_tenant(store: Store, hours: float) -> None:
    _, bar = windows(hours)
    # Without acme, a rollup of which is wrong.
    tenants = ("globex", "initech", "hooli")
    chosen = used(hours, tenants)
    for title, key in (
        ("Tokens by model", attrgetter("model")),
        ("Tokens by type", attrgetter("type")),
        ("Tokens by tenant", attrgetter("tenant")),
    ):
        found = rows(
            store, LLM, title, last(hours), chosen={"tenant": tenants, "llm_meter": TOKENS}
        )
        assert {(row["time"], row["name"]): row["tokens"] for row in found} == bars(
            chosen, bar, key
        )
        assert [row["time"] for row in found] == sorted(row["time"] for row in found)


def test_tokens_of_each_model_and_tenant(store: Store) -> None:
    chosen = used(168)
    tokens = sum(event.quantity for event in chosen) + 7
    for title, name, key, other in (
        ("Models and their tokens", "model", "model", ("tenants", "tenant")),
        ("Tenants and their tokens", "tenant", "tenant", ("models", "model")),
    ):
        found = rows(store, LLM, title, last(168), chosen={"llm_meter": TOKENS})
        wrong = {"claude-haiku-4-5": 7, "acme": 7}
        all_of = {
            one: count + wrong.get(one, 0) for one, count in total(chosen, attrgetter(key)).items()
        }
        assert {row[name]: row["tokens"] for row in found} == all_of
        assert [row["tokens"] for row in found] == sorted(all_of.values(), reverse=True)
        assert sum(row["share"] for row in found) == approx(1)
        for row in found:
            mine = [event for event in chosen if getattr(event, key) == row[name]]
            assert row["share"] == approx(row["tokens"] / tokens)
            assert row["output"] == total(mine, lambda event: event.type).get("output", 0)
            assert row[other[0]] == len({getattr(event, other[1]) for event in mine})
    pie = rows(
        store,
        LLM,
        "Share of each model",
        last(168),
        chosen={"llm_meter": CACHED, "tenant": ("acme",)},
    )
    of_cache = used(168, ("acme",), meter=CACHED)
    assert pie == [{"name": "claude-opus-4-5", "tokens": sum(one.quantity for one in of_cache)}]
    largest = rows(store, LLM, "Largest tenants", last(168), chosen={"llm_meter": TOKENS})
    assert (
        largest[0]["tenant"]
        == max(*total(chosen, lambda event: event.tenant).items(), key=lambda pair: pair[1])[0]
    )


def is_now(quota: Quota, moment: datetime = NOW) -> bool:
    return quota.start <= moment and (quota.end is None or moment < quota.end)


def per_second(quota: Quota) -> float:
    """How fast it was used in the whole hours that make up the last day."""
    first = floor(NOW - DAY, HOUR)
    mine = [
        event.quantity
        for event in COUNTED
        if (event.tenant, event.meter) == (quota.tenant, quota.meter)
        and first <= floor(at(event), HOUR) <= NOW
        and (not quota.filter or event.model in quota.filter[seed_llm.MODEL])
    ]
    wrong = 7 if (quota.tenant, quota.filter) == ("acme", None) else 0
    return (sum(mine) + wrong) / (NOW - first).total_seconds()


def test_figures_of_quotas(store: Store) -> None:
    shares = [float(quota.used / quota.limit) for quota in QUOTAS if is_now(quota)]
    time = last(720)

    assert value(store, QUOTA, "Quotas in force", time) == len(shares) == 5
    assert value(store, QUOTA, "Used up", time) == sum(share >= 1 for share in shares) == 1
    near = sum(0.8 <= share < 1 for share in shares)
    assert value(store, QUOTA, "Over 80 %", time) == near == 1
    assert value(store, QUOTA, "Highest share", time) == approx(max(shares))
    early = [
        quota.quota_id
        for quota in QUOTAS
        if is_now(quota)
        and quota.end
        and quota.used < quota.limit
        and float(quota.limit - quota.used) / per_second(quota) < (quota.end - NOW).total_seconds()
    ]
    assert value(store, QUOTA, "Will not last", time) == len(early)
    assert "quota_acme" in early
    assert value(store, QUOTA, "Tenants without a quota", time) == 1  # hooli


@pytest.mark.parametrize("tenants", [(), ("acme",), ("acme", "umbrella"), ("nobody",)])
def test_how_much_of_each_quota_was_used(store: Store, tenants: tuple[str, ...]) -> None:
    mine = [one for one in QUOTAS if is_now(one) and (not tenants or one.tenant in tenants)]
    mine.sort(key=lambda quota: quota.used / quota.limit, reverse=True)

    found = rows(
        store,
        QUOTA,
        "How much of each quota was used",
        last(720),
        chosen={"tenant": tenants or ALL},
    )

    assert [
        (row["tenant"], row["meter"], row["used"], row["units"], row["period_end"], row["kind"])
        for row in found
    ] == [
        (
            quota.tenant,
            quota.meter,
            float(quota.used),
            float(quota.limit),
            quota.end,
            "default" if quota.is_default else "own",
        )
        for quota in mine
    ]
    for row, quota in zip(found, mine, strict=True):
        assert row["share"] == approx(float(quota.used / quota.limit))
        assert row["remaining"] == max(float(quota.limit - quota.used), 0)


def test_how_long_quotas_last(store: Store) -> None:
    mine = {
        (quota.tenant, quota.meter, quota.filter is not None): quota
        for quota in QUOTAS
        if is_now(quota) and quota.used < quota.limit
    }

    found = rows(store, QUOTA, "Time until a quota is used up", last(1))

    assert {(row["tenant"], row["meter"], row["filter"] != "") for row in found} == set(mine)
    assert [row["lasts"] for row in found] == sorted(row["lasts"] for row in found)
    for row in found:
        quota = mine[row["tenant"], row["meter"], row["filter"] != ""]
        left, limit = float(quota.limit - quota.used), float(quota.limit)
        assert row["lasts"] == approx(left / per_second(quota))
        if quota.end is None:
            assert (row["ends"], row["share_at_end"]) == (None, None)
            continue
        until = (quota.end - NOW).total_seconds()
        assert row["ends"] == until
        at_end = float(quota.used) + per_second(quota) * until
        assert row["share_at_end"] == approx(at_end / limit)


@pytest.mark.parametrize(("days", "count"), [(1, 1), (30, 2)])
def test_periods_that_were_used_up(store: Store, days: int, count: int) -> None:
    since = NOW - days * DAY
    over = [
        quota
        for quota in QUOTAS
        if quota.used >= quota.limit and (quota.end is None or quota.end > since)
    ]
    assert len(over) == count
    time = last(24 * days)

    found = rows(store, QUOTA, "History of quotas that were used up", time)

    assert {(row["tenant"], row["period_start"], row["beyond"]) for row in found} == {
        (quota.tenant, quota.start, float(quota.used) - float(quota.limit)) for quota in over
    }


def test_usage_that_no_quota_limits(store: Store) -> None:
    limited = {(quota.tenant, quota.meter) for quota in QUOTAS if is_now(quota)}
    since = floor(NOW - 30 * DAY, DAY)
    expected: defaultdict[str, list[Event]] = defaultdict(list)
    for event in COUNTED:
        if (event.tenant, event.meter) not in limited and since <= at(event) <= NOW:
            expected[event.tenant].append(event)

    found = rows(store, QUOTA, "Usage that no quota limits", last(720))

    assert {row["tenant"]: (row["meters"], row["measurements"]) for row in found} == {
        tenant: (", ".join(sorted({one.meter for one in events})), len(events))
        for tenant, events in expected.items()
    }
    assert {row["tenant"]: row["quotas"] for row in found} == {
        "hooli": "none",
        "acme": "for other meters",
        "globex": "for other meters",
    }


def ends(key: Key) -> datetime | None:
    """When it stops: by itself, or because another takes its place."""
    successors = [one.replaced_ends for one in KEYS if one.replaces == key.key_id]
    return min((end for end in (key.expires, *successors) if end), default=None)


def state(key: Key) -> str:
    end = ends(key)
    if key.revoked:
        return "revoked"
    if end and end <= NOW:
        return "expired"
    return "expiring" if end and end <= NOW + 30 * DAY else "active"


def of_keys(name: str, hours: float, by: str = "key_id") -> Counter[str]:
    """What the stage `keys` counted in the last hours, by a label or by reason."""
    found: Counter[str] = Counter()
    for stat, minutes in STATS.items():
        if (stat.stage, stat.name) == ("keys", name):
            labels = {**dict(stat.labels), "reason": stat.reason}
            found[labels[by]] += int(minutes[-round(hours * 60) - 1 :].sum())
    return +found


def test_figures_of_keys(store: Store) -> None:
    states = Counter(map(state, KEYS))
    time = last(24)
    assert value(store, KEY, "Active", time) == states["active"] + states["expiring"] == 8
    assert value(store, KEY, "Ending soon", time) == states["expiring"] == 1
    assert value(store, KEY, "Expired", time) == states["expired"] == 2
    assert value(store, KEY, "Revoked", time) == states["revoked"] == 1
    assert value(store, KEY, "Idle", time) == 1
    reasons = of_keys("refused", 24, "reason")
    assert value(store, KEY, "Refused attempts", time) == reasons.total()
    assert value(store, KEY, "With revoked keys", time) == reasons["revoked"] == 120
    assert value(store, KEY, "Revoked, let in", time) == 0


def test_every_key_with_its_state_use_and_traffic(store: Store) -> None:
    found = {row["key_id"]: row for row in rows(store, KEY, "All keys", last(3))}

    arrived, refused = of_keys("in", 3), of_keys("refused", 3)
    assert found.keys() == {key.key_id for key in KEYS}
    for key in KEYS:
        row, end = found[key.key_id], ends(key)
        works = state(key) in ("active", "expiring")
        assert (row["state"], row["ends_at"], row["used_at"]) == (state(key), end, key.last_used)
        left = (end - NOW).total_seconds() if end and works else None
        assert row["remaining"] == left
        assert (row["requests"], row["refused"]) == (arrived[key.key_id], refused[key.key_id])
        assert row["idle"] == ("idle" if key.key_id == "batch-2025" else "")
    assert found["billing-1"]["rotated_to"] == "billing-2"
    assert next(iter(found)) == "mobile-gateway"


def test_a_key_is_in_the_state_it_had_at_the_end_of_the_chosen_time(store: Store) -> None:
    before = TimeRange(NOW - 8 * DAY, NOW - 7 * DAY)
    assert value(store, KEY, "Revoked", before) == 0
    assert value(store, KEY, "Active", TimeRange(NOW - 50 * DAY, NOW - 40 * DAY)) == 10


def test_traffic_of_keys_over_time(store: Store) -> None:
    names = {key.key_id: f"{key.key_id} · {key.name}" for key in KEYS} | {"": "(unknown)"}
    found = rows(store, KEY, "Requests by key", last(3), 600)
    sums: Counter[str] = Counter()
    for row in found:
        sums[row["key"]] += row["requests"]
    assert sums == {names[key]: count for key, count in of_keys("in", 3).items()}
    assert {row["time"] for row in found} == {
        floor(NOW - 3 * HOUR, timedelta(minutes=10)) + i * timedelta(minutes=10) for i in range(19)
    }
    for title, name, label, by in (
        ("Requests by door", "in", "transport", "transport"),
        ("Refused attempts by reason", "refused", "reason", "reason"),
    ):
        doors: Counter[str] = Counter()
        for row in rows(store, KEY, title, last(3)):
            doors[row[label]] += row["requests"]
        assert doors == of_keys(name, 3, by)


def test_who_is_refused(store: Store) -> None:
    revoked = rows(store, KEY, "Traffic with revoked keys", last(24))
    assert [(row["key_id"], row["attempts"], row["revoked_at"]) for row in revoked] == [
        ("contractor", 120, NOW - 5 * DAY)
    ]
    refused = rows(store, KEY, "Who is refused", last(24))
    assert {(row["key"] or "", row["reason"]): row["attempts"] for row in refused} == {
        ("(unknown)", "unknown"): 120,
        ("contractor", "revoked"): 120,
        ("mobile-gateway", "scope"): of_keys("refused", 24)["mobile-gateway"],
    }
    changes = rows(store, KEY, "Changes of keys and tokens", last(24 * 7))
    assert [row["action"] for row in changes] == ["key.create", "key.revoke"]


def closed(hours: float) -> list[Event]:
    """Events of the hours that are over."""
    first, behind = floor(NOW - timedelta(hours=hours), HOUR), floor(NOW, HOUR)
    return [event for event in COUNTED if first <= at(event) < behind]


@pytest.mark.parametrize("hours", [1, 24, 720])
def test_rollups_and_events_differ_where_the_seed_made_them_differ(
    store: Store, hours: float
) -> None:
    mine = closed(hours)
    quantities = total(mine, lambda event: event.meter)
    measured: Counter[str] = Counter()
    for event in mine:
        measured[event.meter] += event.observations
    # The wrong hour is the one that began two hours ago.
    wrong = {TOKENS: 7} if hours > 1 else {}

    found = rows(store, QUALITY, "Rollup and events, by meter", last(hours))

    assert {row["meter"]: row["raw_quantity"] for row in found} == quantities
    assert {row["meter"]: row["raw_count"] for row in found} == measured
    for row in found:
        assert row["difference"] == wrong.get(row["meter"], 0)
        assert row["count_difference"] == (1 if row["meter"] in wrong else 0)
    assert value(store, QUALITY, "Meters that differ", last(hours)) == len(wrong)
    where = rows(store, QUALITY, "Hours that differ", last(hours))
    assert [(row["hour"], row["tenant"], row["difference"]) for row in where] == [
        (floor(NOW, HOUR) - 2 * HOUR, "acme", 7) for _ in wrong
    ]


def late_by(event: Event) -> float:
    return (event.ingested_ms - event.at_ms) / 1_000


@pytest.mark.parametrize("hours", [1, 24, 720])
def test_how_late_events_came(store: Store, hours: float) -> None:
    since = NOW - timedelta(hours=hours)
    mine = [event for event in EVENTS if since <= at(event) <= NOW]

    found = rows(store, QUALITY, "How late events come", last(hours))

    bounds = {
        "ahead": (-1e9, -5.001),
        "up to 1 s": (-5, 1),
        "1 to 10 s": (1.001, 10),
        "10 to 60 s": (10.001, 60),
        "1 to 10 min": (60.001, 600),
        "10 to 60 min": (600.001, 3_600),
        "1 to 24 h": (3_600.001, 86_400),
        "over a day": (86_400.001, 1e9),
    }
    assert {row["step"]: row["events"] for row in found} == {
        step: sum(low <= late_by(event) <= high for event in mine)
        for step, (low, high) in bounds.items()
    }
    assert sum(row["events"] for row in found) == len(mine)
    hour_late = sum(late_by(event) > 3_600 for event in mine)
    assert value(store, QUALITY, "Late by over an hour", last(hours)) == hour_late
    who = rows(store, QUALITY, "Who sends late", last(hours))
    assert {(row["tenant"], row["meter"]): row["late"] for row in who} == Counter(
        (event.tenant, event.meter) for event in mine if late_by(event) > 60
    )


def test_who_is_ahead_of_time(store: Store) -> None:
    assert value(store, QUALITY, "Ahead of time", last(1)) == 5
    (row,) = rows(store, QUALITY, "Who sends ahead of time", last(1))
    assert (row["tenant"], row["events"], row["furthest"]) == ("initech", 5, 7_204)


@pytest.mark.parametrize("hours", [1, 24 * 7])
def test_what_is_in_quarantine_and_what_became_of_it(store: Store, hours: float) -> None:
    since = NOW - timedelta(hours=hours)
    mine: list[Item] = [item for item in ITEMS if since <= item.at <= NOW]

    found = rows(store, QUALITY, "What became of it", last(hours))

    assert {row["reason"]: row["items"] for row in found} == Counter(one.reason for one in mine)
    for title, how in (("open", ""), ("replayed", "replayed"), ("discarded", "discarded")):
        assert {row["reason"]: row[title] for row in found if row[title]} == Counter(
            one.reason for one in mine if one.resolution == how
        )
    is_open = [one for one in mine if not one.resolution]
    assert value(store, QUALITY, "Open in quarantine", last(hours)) == len(is_open)
    assert {row["reason"]: row["oldest"] for row in found} == {
        reason: min(one.at for one in is_open if one.reason == reason)
        for reason in {one.reason for one in mine}
    }
    reasons: Counter[str] = Counter()
    for row in rows(store, QUALITY, "Into quarantine, by reason", last(hours)):
        reasons[row["reason"]] += row["items"]
    assert reasons == Counter(one.reason for one in mine)
    assert value(store, QUALITY, "Conflicts", last(hours)) == 5
    one_tenant: dict[str, Value] = {"tenant": ("initech",)}
    assert value(store, QUALITY, "Conflicts", last(hours), chosen=one_tenant) == 0


def test_unknown_meters_and_corrections(store: Store) -> None:
    assert value(store, QUALITY, "Meters without definition", last(24)) == 1
    (row,) = rows(store, QUALITY, "Meters that nobody defined", last(24))
    assert (row["meter"], row["quantity"], row["tenants"]) == (UNDEFINED, 120, 1)
    (row,) = rows(store, QUALITY, "Unknown meters in quarantine", last(24 * 7))
    assert (row["item"], row["items"], row["open"]) == ("disk.io", 2, 2)
    (row,) = rows(store, QUALITY, "Who contradicts what was counted", last(24))
    assert (row["tenant"], row["key_id"], row["items"]) == ("globex", "checkout", 5)
    taken_out = rows(store, QUALITY, "Corrections", last(48))
    corrected = seed_llm.corrections(EVENTS, NOW)
    assert {row["action"]: row["quantity"] for row in taken_out} == {
        "correct" if one.replaced_by else "void": one.event.quantity for one in corrected
    }
