"""Stage `keys`: of requests that showed a key, in = out + refused, by key, and no text of a sender becomes a label."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otel_metering.clock import ManualClock
from otel_metering.errors import MeteringError
from query_api.tokens import make_token
from receiver.auth import authenticate
from receiver.exposition import exposition
from receiver.store import key_counts
from receiver.store.client import Store
from receiver.store.key_counts import KeyCounts, Refusal, Refused
from receiver.store.keys import ApiKey, ApiKeys, Scope
from receiver.store.migrate import migrate
from receiver.telemetry import Telemetry
from tests.integration.api_harness import Api, running_api
from tests.prometheus import Samples, parse, total

PREFIX = "otel_metering_receiver_keys_"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store(f"chdb://{tmp_path_factory.mktemp('keys')}")
    migrate(opened, ManualClock())
    yield opened
    opened.close()


@dataclass
class Shown:
    """A text that is shown, and what is to be counted of it."""

    text: str
    key_id: str
    fate: str


def texts(keys: ApiKeys, clock: ManualClock) -> dict[str, Shown]:
    """One of each kind, for a request that needs the scope ingest."""

    def made(name: str, scope: Scope = Scope.INGEST, **how: timedelta) -> tuple[ApiKey, str]:
        ends = how.get("ends")
        now = keys._now()
        return keys.create(name=name, scopes=[scope], expires_at=now + ends if ends else None)

    good, revoked, rotated = made("good"), made("revoked"), made("rotated")
    expired, reader, admin = (
        made("expired", ends=timedelta(seconds=1)),
        made("reader", Scope.QUERY),
        made("admin", Scope.ADMIN),
    )
    keys.revoke(revoked[0].key_id)
    keys.rotate(rotated[0].key_id, overlap=timedelta(seconds=1))
    clock.advance(2)
    keys.refresh()
    return {
        "good": Shown(good[1], good[0].key_id, "out"),
        "admin": Shown(admin[1], admin[0].key_id, "out"),
        "revoked": Shown(revoked[1], revoked[0].key_id, "revoked"),
        "expired": Shown(expired[1], expired[0].key_id, "expired"),
        "rotated": Shown(rotated[1], rotated[0].key_id, "expired"),
        "scope": Shown(reader[1], reader[0].key_id, "scope"),
        "guessed": Shown(f"otm_{good[0].key_id}_{'0' * 64}", "", "unknown"),
        "guessed of a revoked one": Shown(f"otm_{revoked[0].key_id}_{'0' * 64}", "", "unknown"),
        "hostile": Shown("otm_${x}'\\_\"\n", "", "unknown"),
        "odd": Shown("ingest", "", "unknown"),
    }


def read(counts: KeyCounts) -> Samples:
    telemetry = Telemetry()
    telemetry.also("keys", counts.read)
    return parse(exposition(telemetry.read()))


def counted(samples: Samples, name: str) -> Counter[tuple[str, ...]]:
    """(key id, transport[, reason]) -> count, without what is 0."""
    return Counter(
        {
            tuple(
                labels[label] for label in ("key_id", "transport", "reason") if label in labels
            ): int(count)
            for (metric, pairs), count in samples.items()
            if metric == f"{PREFIX}{name}_total" and count
            for labels in [dict(pairs)]
        }
    )


KINDS = ["good", "admin", "revoked", "expired", "rotated", "scope", "guessed", "hostile", "odd"]


@pytest.fixture(scope="module")
def world(store: Store) -> tuple[ApiKeys, dict[str, Shown]]:
    clock = ManualClock()
    keys = ApiKeys(store, clock)
    keys.refresh()
    return keys, texts(keys, clock)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shown=st.lists(
        st.tuples(
            st.sampled_from([*KINDS, "guessed of a revoked one", "none"]),
            st.sampled_from(["grpc", "http", "clickhouse"]),
        ),
        max_size=30,
    )
)
def test_each_request_with_a_key_is_counted_once(
    world: tuple[ApiKeys, dict[str, Shown]], shown: list[tuple[str, str]]
) -> None:
    keys, known = world
    keys.counts = KeyCounts()
    came: Counter[tuple[str, ...]] = Counter()
    left: Counter[tuple[str, ...]] = Counter()
    refused: Counter[tuple[str, ...]] = Counter()
    for kind, transport in shown:
        if kind == "none":
            with suppress(MeteringError):
                authenticate({}, keys, transport)
            continue
        one = known[kind]
        with suppress(MeteringError):
            authenticate({"authorization": f"Bearer {one.text}"}, keys, transport)
        came[one.key_id, transport] += 1
        if one.fate == "out":
            left[one.key_id, transport] += 1
        else:
            refused[one.key_id, transport, one.fate] += 1

    samples = read(keys.counts)

    assert counted(samples, "in") == came
    assert counted(samples, "out") == left
    assert counted(samples, "refused") == refused
    assert total(samples, f"{PREFIX}in_total") == total(samples, f"{PREFIX}out_total") + total(
        samples, f"{PREFIX}refused_total"
    )


def test_keys_that_cannot_be_read_are_not_counted(store: Store) -> None:
    clock = ManualClock()
    keys = ApiKeys(store, clock)
    keys.refresh()
    text = keys.create(name="n", scopes=[Scope.INGEST])[1]
    clock.advance(60)

    with pytest.raises(MeteringError):
        authenticate({"authorization": f"Bearer {text}"}, keys, "grpc")

    assert list(keys.counts.read()) == []


def test_keys_beyond_the_bound_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_counts, "MAX_KEYS", 2)
    counts = KeyCounts()
    for key_id in ("a", "b", "c", "a", "d", "c"):
        counts.passed("grpc", key_id)
    counts.refused("api", Refusal(Refused.SCOPE, "e"))
    counts.refused("api", Refusal(Refused.UNKNOWN))

    samples = read(counts)

    assert counted(samples, "out") == {("a", "grpc"): 2, ("b", "grpc"): 1, ("other", "grpc"): 3}
    assert counted(samples, "refused") == {("other", "api", "scope"): 1, ("", "api", "unknown"): 1}


@pytest.fixture(scope="module")
def api(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    store.close()  # one path at a time in one process
    with running_api(tmp_path_factory.mktemp("api")) as running:
        yield running


Call = Callable[[Api, str], int]


def call(method: str, path: str, **how: object) -> Call:
    def do(api: Api, key: str) -> int:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        answer = api.client().request(method, path, headers=headers, **how)  # type: ignore[arg-type]
        return answer.status_code

    return do


AGGREGATES = "/v1/meter/aggregates?meter=api.calls&tenant_id=tenant_b"
CHECK = {"tenant_id": "tenant_b", "meter": "api.calls", "quantity": "1"}
EVENTS = [{"tenant_id": "tenant_b", "meter": "api.calls"}]

CALLS: dict[str, tuple[Call, tuple[Scope, ...], str | None, int, str]] = {
    # what -> (call, scopes and tenant of the key, status, fate)
    "a read": (call("GET", AGGREGATES), (Scope.QUERY,), None, 200, "out"),
    "a read of the key's tenant": (call("GET", AGGREGATES), (Scope.QUERY,), "tenant_b", 200, "out"),
    "a read of another tenant": (
        call("GET", AGGREGATES),
        (Scope.QUERY,),
        "tenant_a",
        403,
        "tenant",
    ),
    "a read with a key to write": (call("GET", AGGREGATES), (Scope.INGEST,), None, 403, "scope"),
    "a read that is wrong": (
        call("GET", "/v1/meter/aggregates?meter=%24"),
        (Scope.QUERY,),
        None,
        400,
        "out",
    ),
    "events": (call("POST", "/v1/meter/events", json=EVENTS), (Scope.INGEST,), None, 202, "out"),
    "a check": (
        call("POST", "/v1/meter/validate", json=CHECK),
        (Scope.VALIDATE,),
        None,
        200,
        "out",
    ),
    "a check of another tenant": (
        call("POST", "/v1/meter/validate", json=CHECK),
        (Scope.VALIDATE,),
        "tenant_a",
        403,
        "tenant",
    ),
    "a check with a key to read": (
        call("POST", "/v1/meter/validate", json=CHECK),
        (Scope.QUERY,),
        None,
        403,
        "scope",
    ),
    "the numbers, bound to a tenant": (
        call("GET", "/metrics"),
        (Scope.QUERY,),
        "tenant_a",
        403,
        "tenant",
    ),
    "a path that is none": (call("GET", "/v1/none"), (Scope.QUERY,), None, 404, "nothing"),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_request_to_the_api_is_counted_by_what_its_key_came_to(api: Api, what: str) -> None:
    do, scopes, tenant_id, status, fate = CALLS[what]
    key, text = api.keys.create(name=what, scopes=scopes, tenant_id=tenant_id)

    assert do(api, text) == status

    samples = read(api.keys.counts)
    mine = {
        name: Counter({k: n for k, n in counted(samples, name).items() if k[0] == key.key_id})
        for name in ("in", "out", "refused")
    }
    is_out = fate == "out"
    is_seen = fate != "nothing"
    assert mine["in"] == ({(key.key_id, "api"): 1} if is_seen else {})
    assert mine["out"] == ({(key.key_id, "api"): 1} if is_out else {})
    is_refused = is_seen and not is_out
    assert mine["refused"] == ({(key.key_id, "api", fate): 1} if is_refused else {})


def test_keys_and_tokens_that_open_nothing_are_named_only_to_who_had_them(api: Api) -> None:
    key, text = api.keys.create(name="n", scopes=[Scope.QUERY])
    revoked, revoked_text = api.keys.create(name="n", scopes=[Scope.QUERY])
    now_s = api.clock.now_ns() // 10**9

    def token(of: ApiKey, ends_s: int) -> str:
        return make_token(of, tenant_id="tenant_b", meters=None, expires_at_seconds=ends_s)

    good, over, dead = token(key, now_s + 60), token(key, now_s - 1), token(revoked, now_s + 60)
    forged = f"{good.partition('.')[0]}.{'A' * 43}"
    api.keys.revoke(revoked.key_id)
    api.keys.counts._passed.clear()
    api.keys.counts._refused.clear()

    do = call("GET", AGGREGATES)
    wrong = [over, dead, forged, "ott_x", revoked_text, f"otm_{key.key_id}_{'0' * 64}", "x'\\"]
    assert [do(api, one) for one in (good, text, *wrong, "")] == [200, 200, *[401] * 8]

    samples = read(api.keys.counts)
    assert counted(samples, "out") == {(key.key_id, "api"): 2}
    assert counted(samples, "refused") == {
        (key.key_id, "api", "expired"): 1,
        (revoked.key_id, "api", "revoked"): 2,
        ("", "api", "unknown"): 4,
    }
    assert sum(counted(samples, "in").values()) == 9, "the one without a key is not counted"
