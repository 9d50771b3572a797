"""API keys on a real database: rotation, revocation everywhere, the last use, ids, and what a read costs."""

import random
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, cast

import pytest

from otel_metering.clock import ManualClock, SystemClock
from otel_metering.errors import InvalidUsageError, UnavailableError
from receiver.store import tables
from receiver.store.client import Store
from receiver.store.keys import ApiKeys, KeyExistsError, KeyStateError, Scope
from receiver.store.migrate import migrate
from tests.waiting import eventually

SECRET = "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    opened = Store(f"chdb://{tmp_path_factory.mktemp('keys')}")
    migrate(opened, ManualClock())
    yield opened
    opened.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Asked:
    """A store that remembers what it was asked, and lets something happen meanwhile."""

    def __init__(self, store: Store, meanwhile: Callable[[str], None] = lambda _: None) -> None:
        self._store = store
        self._meanwhile = meanwhile
        self.statements: list[str] = []

    def query(self, sql: str, parameters: Mapping[str, object] | None = None) -> Any:
        return self._asked(sql, self._store.query(sql, parameters))

    def query_table(self, sql: str, parameters: Mapping[str, object] | None = None) -> Any:
        return self._asked(sql, self._store.query_table(sql, parameters))

    def _asked(self, sql: str, answer: Any) -> Any:
        self.statements.append(sql)
        self._meanwhile(sql)
        return answer


def keys_of(store: Store, clock: ManualClock) -> ApiKeys:
    keys = ApiKeys(store, clock)
    keys.refresh()
    return keys


def works(keys: ApiKeys, text: str) -> bool:
    return keys.authenticate(text) is not None


def test_a_rotated_key_works_until_its_overlap_ends_and_the_new_one_at_once(
    store: Store, clock: ManualClock
) -> None:
    keys = keys_of(store, clock)
    old, old_text = keys.create(
        name="n", scopes=[Scope.QUERY], tenant_id="tenant_a", rate_limit_per_second=7
    )

    rotated = keys.rotate(old.key_id, overlap=timedelta(seconds=60))

    assert rotated is not None
    new, new_text = rotated
    assert (new.name, new.scopes, new.tenant_id, new.rate_limit_per_second, new.expires_at) == (
        ("n", (Scope.QUERY,), "tenant_a", 7, None)
    )
    assert new.replaces == old.key_id
    for one in (keys, keys_of(store, clock)):
        shown = one.get(old.key_id)
        assert shown is not None
        assert shown.rotated_to == new.key_id
        assert works(one, old_text)
        assert works(one, new_text)
    clock.advance(59.9)
    keys.refresh()
    assert works(keys, old_text)
    clock.advance(0.2)
    assert not works(keys, old_text)
    assert works(keys, new_text)
    later = keys_of(store, clock)
    assert not works(later, old_text)
    assert works(later, new_text)


def test_a_rotation_does_not_prolong_a_key(store: Store, clock: ManualClock) -> None:
    keys = keys_of(store, clock)
    end = keys.create(name="n", scopes=[Scope.QUERY])[0].created_at + timedelta(seconds=30)
    old, old_text = keys.create(name="n", scopes=[Scope.QUERY], expires_at=end)

    rotated = keys.rotate(old.key_id, overlap=timedelta(hours=1))
    clock.advance(31)
    keys.refresh()

    assert rotated is not None
    assert rotated[0].expires_at == end
    assert not works(keys, old_text)
    assert not works(keys, rotated[1])


def test_a_key_is_rotated_once_and_only_while_it_works(store: Store, clock: ManualClock) -> None:
    keys = keys_of(store, clock)
    first = keys.create(name="n", scopes=[Scope.QUERY])[0]
    second = keys.create(name="n", scopes=[Scope.QUERY])[0]
    rotated = keys.rotate(first.key_id, overlap=timedelta(seconds=5))
    keys.revoke(second.key_id)

    assert rotated is not None
    with pytest.raises(KeyStateError, match=f"rotated to {rotated[0].key_id}"):
        # Also by a process that has not heard of the first rotation.
        ApiKeys(store, clock).rotate(first.key_id, overlap=timedelta(seconds=5))
    with pytest.raises(KeyStateError, match="revoked or expired"):
        keys.rotate(second.key_id, overlap=timedelta(seconds=5))
    assert keys.rotate("unknown", overlap=timedelta(seconds=5)) is None


def test_revoking_the_old_key_ends_its_overlap(store: Store, clock: ManualClock) -> None:
    keys = keys_of(store, clock)
    old, old_text = keys.create(name="n", scopes=[Scope.QUERY])
    rotated = keys.rotate(old.key_id, overlap=timedelta(hours=1))

    keys.revoke(old.key_id)

    assert rotated is not None
    for one in (keys, keys_of(store, clock)):
        assert not works(one, old_text)
        assert works(one, rotated[1])


def test_a_key_revoked_in_one_process_stops_in_another_within_five_seconds(store: Store) -> None:
    clock = SystemClock()
    here, there = ApiKeys(store, clock), ApiKeys(store, clock)
    here.start()
    there.start()
    try:
        key, text = here.create(name="n", scopes=[Scope.QUERY])
        eventually(lambda: works(there, text), bool, seconds=5)

        here.revoke(key.key_id)

        assert not works(here, text)
        eventually(lambda: works(there, text), lambda it_works: not it_works, seconds=5)
    finally:
        here.stop()
        there.stop()


def test_a_revocation_wins_whatever_clocks_and_other_processes_say(
    store: Store, clock: ManualClock
) -> None:
    ahead = ManualClock(clock.ns)
    ahead.advance(3_600)
    elsewhere, keys = keys_of(store, ahead), keys_of(store, clock)
    key, text = elsewhere.create(name="n", scopes=[Scope.QUERY])

    # By a clock that is an hour behind, and then rotated where nobody knows of it yet.
    keys.revoke(key.key_id)
    with pytest.raises(KeyStateError):
        elsewhere.rotate(key.key_id, overlap=timedelta(hours=1))

    elsewhere.refresh()
    assert not works(elsewhere, text)
    assert not works(keys_of(store, ahead), text)


def test_after_five_seconds_without_an_answer_nobody_is_let_in(
    store: Store, clock: ManualClock
) -> None:
    keys = keys_of(store, clock)
    _, text = keys.create(name="n", scopes=[Scope.QUERY])

    clock.advance(5.1)

    with pytest.raises(UnavailableError):
        keys.authenticate(text)


def test_what_is_known_is_as_old_as_the_begin_of_its_read(store: Store, clock: ManualClock) -> None:
    """A key that is revoked while a read hangs must not live five seconds longer than the hang."""
    _, text = keys_of(store, clock).create(name="n", scopes=[Scope.QUERY])
    asked = Asked(store, lambda _: clock.advance(3))
    keys = ApiKeys(cast(Store, asked), clock)

    keys.refresh()

    assert len(asked.statements) == 3
    with pytest.raises(UnavailableError):
        keys.authenticate(text)


def test_an_id_is_given_to_one_key_for_ever(store: Store, clock: ManualClock) -> None:
    keys = keys_of(store, clock)
    text = f"otm_once_{SECRET}"
    keys.create(name="n", scopes=[Scope.ADMIN], key=text)
    keys.revoke("once")

    for one in (keys, ApiKeys(store, clock)):
        for again in (text, f"otm_once_{SECRET[::-1]}"):
            with pytest.raises(KeyExistsError, match="a key once already"):
                one.create(name="n", scopes=[Scope.ADMIN], key=again)

    assert not works(keys_of(store, clock), text)


@pytest.mark.parametrize("key_id", ["", "a b", "a\nb", "a" * 65, "é"])
def test_an_id_that_could_confuse_a_log_is_refused(
    store: Store, clock: ManualClock, key_id: str
) -> None:
    with pytest.raises(InvalidUsageError, match="1 to 64 characters"):
        keys_of(store, clock).create(name="n", scopes=[Scope.ADMIN], key=f"otm_{key_id}_{SECRET}")


def test_ids_are_compared_as_a_whole(store: Store, clock: ManualClock) -> None:
    keys = keys_of(store, clock)
    short, long = f"otm_pre_{SECRET}", f"otm_prefix_{SECRET}"
    keys.create(name="n", scopes=[Scope.QUERY], key=short)
    keys.create(name="n", scopes=[Scope.INGEST], key=long)

    keys.revoke("pre")

    assert not works(keys, short)
    assert works(keys, long)


def test_the_last_use_is_known_here_at_once_and_elsewhere_once_it_is_written(
    store: Store, clock: ManualClock
) -> None:
    keys, elsewhere = keys_of(store, clock), keys_of(store, clock)
    key, text = keys.create(name="n", scopes=[Scope.QUERY])
    used = [key.key_id]
    assert keys.use.last_used(used) == {}
    assert not works(keys, text[:-1] + "!")
    assert keys.use.last_used(used) == {}

    clock.advance(1)
    keys.authenticate(text)

    micros = clock.ns // 1_000
    assert keys.use.last_used(used) == {key.key_id: micros}
    assert elsewhere.use.last_used(used) == {}
    keys.use.write()
    assert elsewhere.use.last_used(used) == {key.key_id: micros}
    rows = store.query("SELECT count() FROM metering.api_key_use")
    keys.use.write()
    assert store.query("SELECT count() FROM metering.api_key_use") == rows


def test_a_stop_writes_the_last_use(store: Store) -> None:
    keys = ApiKeys(store, SystemClock())
    keys.start()
    key, text = keys.create(name="n", scopes=[Scope.QUERY])
    keys.authenticate(text)

    keys.stop()

    assert key.key_id in keys_of(store, ManualClock()).use.last_used([key.key_id])


def test_the_use_of_a_key_waits_for_a_database_that_takes_nothing(
    store: Store, clock: ManualClock
) -> None:
    keys = keys_of(store, clock)
    key, text = keys.create(name="n", scopes=[Scope.QUERY])
    store.execute("RENAME TABLE metering.api_key_use TO metering.elsewhere")
    try:
        keys.authenticate(text)
        with pytest.raises(Exception, match="api_key_use"):
            keys.use.write()
    finally:
        store.execute("RENAME TABLE metering.elsewhere TO metering.api_key_use")

    keys.use.write()

    assert key.key_id in keys_of(store, clock).use.last_used([key.key_id])


@pytest.mark.parametrize("seed", range(4))
def test_processes_agree_with_each_other_and_with_a_fresh_read(store: Store, seed: int) -> None:
    """Some processes with clocks of their own, merges in between; each may miss nothing."""
    chance = random.Random(seed)
    clocks = [ManualClock() for _ in range(3)]
    for one in clocks:
        one.advance(chance.uniform(-600, 600))
    processes = [keys_of(store, one) for one in clocks]
    made: list[str] = []
    for _ in range(30):
        at = chance.randrange(3)
        clocks[at].advance(chance.choice([0, 0, 0.5]))
        process, dice = processes[at], chance.random()
        if dice < 0.5 or not made:
            made.append(process.create(name="n", scopes=[Scope.QUERY])[0].key_id)
        elif dice < 0.7:
            process.revoke(chance.choice(made))
        elif dice < 0.8:
            store.execute(f"OPTIMIZE TABLE {tables.API_KEYS} FINAL")
        elif dice < 0.85:
            gone = made.pop(chance.randrange(len(made)))
            store.execute(
                f"DELETE FROM {tables.API_KEYS} WHERE key_id = {{id:String}}", {"id": gone}
            )
        else:
            process.refresh()
    for process, one in zip(processes, clocks, strict=True):
        process.refresh()
        assert process.list() == keys_of(store, one).list()
        assert {key.key_id for key in process.list()} >= set(made)


def test_looking_for_changes_reads_no_rows_when_there_are_none(
    store: Store, clock: ManualClock
) -> None:
    clock.advance(10 * 365 * 86_400)  # later than whatever other tests have left
    asked = Asked(store)
    keys, elsewhere = ApiKeys(cast(Store, asked), clock), keys_of(store, clock)
    elsewhere.create(name="n", scopes=[Scope.QUERY])
    keys.refresh()
    asked.statements.clear()

    keys.refresh()
    quiet = list(asked.statements)
    clock.advance(1)
    made = elsewhere.create(name="n", scopes=[Scope.QUERY])[0]
    asked.statements.clear()
    keys.refresh()

    assert [_reads_everything(sql) for sql in quiet] == [False]
    assert [_reads_everything(sql) for sql in asked.statements] == [False, False]
    assert keys.get(made.key_id) is not None


def _reads_everything(sql: str) -> bool:
    return "FINAL" in sql or "GROUP BY" in sql
