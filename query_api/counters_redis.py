"""Counters and reservations in Redis (6.0 or later), shared by processes; each operation is one script.

What a server lost must not be taken for what it has. So every connection asks first which server it has
reached (`run_id`), and a key that only `settle_in` sets says that nobody emptied it. Keys of another server's
time are never read again: the name of each key begins with the server's. `Recovery` does the rest.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, assert_never, cast

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from otel_metering.clock import Clock
from otel_metering.errors import UnavailableError
from query_api import counters_lua as lua
from query_api.counters import (
    KEPT_MS,
    Active,
    Adjust,
    Check,
    Checked,
    Count,
    Counted,
    Drop,
    End,
    Extend,
    Find,
    Hold,
    Put,
    Reservation,
    Restore,
    State,
)
from query_api.quotas import Tag

TIMEOUT_SECONDS: Final = 1.0
MAX_PIPELINE: Final = 256
"""Checks that are sent together."""

_MS_NS: Final = 1_000_000
_LIMB: Final = 10**13
_KEPT_LONG_MS: Final = 35 * 24 * 3_600_000
_T = TypeVar("_T")


class OtherServerError(redis.ConnectionError):
    """The server is not the one that the counters are in."""


class Script:
    """A script by its digest, which Redis keeps it under."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = redis.Redis().register_script(text).sha


_CHECK, _COUNT, _TOUCH = Script(lua.CHECK), Script(lua.COUNT), Script(lua.TOUCH)
_ACTIVE, _CHANGE = Script(lua.ACTIVE), Script(lua.CHANGE)
_SCRIPTS: Final = (_CHECK, _COUNT, _TOUCH, _ACTIVE, _CHANGE)

Command = tuple[object, ...]


class RedisCounters:
    """See `counters.Counters`. The asynchronous methods belong to one event loop.

    Attributes:
        has_moved: Whether a connection reached another server than the counters are in.
    """

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        """Connect to nothing yet; `clock` in place of the server's, for tests."""
        self._clock = clock
        self._home = ""
        self._epoch = b""
        self.has_moved = False
        # No retries in here: who retries knows for how long, and nothing waits for it.
        how: dict[str, Any] = {
            "socket_timeout": TIMEOUT_SECONDS,
            "socket_connect_timeout": TIMEOUT_SECONDS,
            "protocol": 2,
        }
        once = Retry(NoBackoff(), 0)
        self._raw = redis.Redis.from_url(url, retry=once, **how)
        self._now = redis.Redis.from_url(url, retry=once, redis_connect_func=self._greet, **how)
        self._soon = redis.asyncio.Redis.from_url(
            url,
            retry=redis.asyncio.retry.Retry(NoBackoff(), 0),
            redis_connect_func=self._greet_soon,
            **how,
        )
        self._waiting: list[tuple[list[Command], asyncio.Future[Any]]] = []
        self._sender: asyncio.Task[None] | None = None

    def look(self) -> bool:
        """See which server this is, and whether it has what it had; False: it has lost all.

        After False, assert what must be known, and then `settle_in`.

        Raises:
            UnavailableError: It cannot be reached.
        """

        def work() -> bool:
            found = str(self._raw.info("server")["run_id"])
            epoch = cast(bytes | None, self._raw.get(f"otm:{found[:12]}:epoch")) or b""
            is_whole = bool(epoch) and (found == self._home or not self._home)
            is_whole = is_whole and self._epoch in (b"", epoch)
            self._home, self._epoch, self.has_moved = found, epoch, False
            for script in _SCRIPTS:
                self._raw.script_load(script.text)
            return is_whole

        return self._try(work)

    def settle_in(self) -> None:
        """From now on what is there is complete, as far as this process knows.

        Raises:
            UnavailableError: It cannot be reached.
        """

        def work() -> None:
            key = f"otm:{self._home[:12]}:epoch"
            self._now.set(key, secrets.token_hex(8), nx=True)
            self._epoch = cast(bytes, self._now.get(key))

        self._try(work)

    def is_whole(self) -> bool:
        """Whether it is the server that it was, and was not emptied.

        Raises:
            UnavailableError: It cannot be reached.
        """
        return self._try(lambda: self._now.get(f"otm:{self._home[:12]}:epoch")) == self._epoch

    def check(self, check: Check) -> Checked:
        """Read counters, and hold units."""
        return _checked(check, self._run([self._check_commands(check)])[0])

    async def check_soon(self, check: Check) -> Checked:
        """As `check`; what several tasks ask meanwhile is sent together."""
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((self._check_commands(check), done))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        return _checked(check, await done)

    def count(self, counts: Sequence[Count]) -> list[Counted]:
        """Add usage; each atomically."""
        answers = self._run([[self._count_command(one)] for one in counts])
        return [
            Counted(
                tuple(key.decode() for key in missing),
                tuple(_reservation(count.tag, fields) for fields in settled),
            )
            for count, (missing, settled) in zip(counts, answers, strict=True)
        ]

    def touch(self, operation: Find | End | Extend | Hold) -> Reservation | None:
        """Do something to a reservation; returns it as it then is. None: there is none."""
        match operation:
            case Find():
                what: tuple[str, object] = "find", ""
            case End():
                what = "end", operation.state
            case Extend():
                what = "extend", operation.ttl_ms
            case Hold():
                what = "hold", operation.scope
            case _:
                assert_never(operation)
        command = self._command(_TOUCH, operation.tag, operation.reservation_id, *what)
        (fields,) = self._run([[command]])
        return _reservation(operation.tag, fields) if fields else None

    def active(self, operation: Active) -> list[Reservation]:
        """Every active reservation of a tag."""
        (answer,) = self._run([[self._command(_ACTIVE, operation.tag)]])
        return [_reservation(operation.tag, fields) for fields in answer if fields]

    def change(self, operations: Sequence[Put | Adjust | Drop | Restore]) -> None:
        """Do these, one by one."""
        self._run([self._change_commands(one) for one in operations])

    def locate(self, reservation_id: str) -> list[Tag]:
        """The tags that have a reservation of this id."""
        (names,) = self._run([[("HKEYS", self._index(reservation_id))]])
        tags = [name.decode().partition("|") for name in names]
        return [
            (tenant, meter)
            for tenant, _, meter in tags
            if self.touch(Find((tenant, meter), reservation_id))
        ]

    def close(self) -> None:
        """Close what synchronous methods use."""
        self._raw.close()
        self._now.close()

    async def aclose(self) -> None:
        """Close what asynchronous methods use, on their event loop."""
        if self._sender is not None:
            await asyncio.wait([self._sender])
        await self._soon.aclose()

    def _check_commands(self, check: Check) -> list[Command]:
        lines = [
            part
            for key, scope, ceiling in check.lines
            for part in (key, scope, "" if ceiling is None else to_limbs(ceiling))
        ]
        values: list[object] = [to_limbs(check.quantity), len(check.lines), *lines]
        asked = check.asked
        if asked is None:
            return [self._command(_CHECK, check.tag, *values, "")]
        is_lease, dimensions = int(asked.is_lease), json.dumps(asked.dimensions)
        held = [asked.reservation_id, is_lease, asked.ttl_ms, dimensions, json.dumps(asked.scopes)]
        command = self._command(_CHECK, check.tag, *values, *held)
        return [*self._index_commands(check.tag, asked.reservation_id), command]

    def _count_command(self, count: Count) -> Command:
        deltas = [part for key, amount in count.deltas for part in (key, to_limbs(amount))]
        settled = [
            part
            for one in count.settlements
            for part in (one.reservation_id, to_limbs(one.amount), int(one.is_commit))
        ]
        head = (count.source, count.number, len(count.deltas), *deltas)
        return self._command(_COUNT, count.tag, *head, len(count.settlements), *settled)

    def _change_commands(self, operation: Put | Adjust | Drop | Restore) -> list[Command]:
        match operation:
            case Put(tag, key, value, until_ms):
                until = self._far_ms() if until_ms is None else until_ms
                return [self._command(_CHANGE, tag, "put", key, to_limbs(value), until)]
            case Adjust(tag, key, delta):
                return [self._command(_CHANGE, tag, "adjust", key, to_limbs(delta))]
            case Drop(tag, key):
                return [self._command(_CHANGE, tag, "drop", key)]
            case Restore(one):
                fields = (
                    one.reservation_id,
                    one.state,
                    to_limbs(one.quantity),
                    to_limbs(one.left),
                    json.dumps(one.dimensions),
                    int(one.is_lease),
                    one.expires_ms,
                    json.dumps(one.scopes),
                )
                command = self._command(_CHANGE, one.tag, "restore", *fields)
                return [*self._index_commands(one.tag, one.reservation_id), command]
            case _:
                assert_never(operation)

    def _far_ms(self) -> int:
        seconds, _ = self._try(self._now.time)
        return seconds * 1_000 + _KEPT_LONG_MS

    def _command(self, script: Script, tag: Tag, *values: object) -> Command:
        # What is in braces decides the slot: all keys of a tag are on one node of a cluster.
        prefix = f"otm:{self._home[:12]}:{{{tag[0]}|{tag[1]}}}:"
        now = "" if self._clock is None else self._clock.now_ns() // _MS_NS
        return ("EVALSHA", script.sha, 1, f"{prefix}x", prefix, now, *values)

    def _index(self, reservation_id: str) -> str:
        return f"otm:{self._home[:12]}:id:{reservation_id}"

    def _index_commands(self, tag: Tag, reservation_id: str) -> list[Command]:
        key = self._index(reservation_id)
        return [("HSET", key, f"{tag[0]}|{tag[1]}", ""), ("PEXPIRE", key, 2 * KEPT_MS)]

    def _run(self, groups: Sequence[Sequence[Command]]) -> list[Any]:
        """The answer to the last command of each group."""
        if not groups:
            return []

        def work() -> list[Any]:
            pipeline = self._now.pipeline(transaction=False)
            for command in (one for group in groups for one in group):
                pipeline.execute_command(*command)  # type: ignore[no-untyped-call]  # redis has no type for it
            return pipeline.execute()

        return _lasts(groups, self._try(work))

    async def _send(self) -> None:
        try:
            while self._waiting:
                some = self._waiting[:MAX_PIPELINE]
                del self._waiting[: len(some)]
                await self._send_some(some)
        finally:
            self._sender = None

    async def _send_some(self, some: list[tuple[list[Command], "asyncio.Future[Any]"]]) -> None:
        groups = [commands for commands, _ in some]
        try:
            pipeline = self._soon.pipeline(transaction=False)
            for command in (one for group in groups for one in group):
                pipeline.execute_command(*command)
            async with asyncio.timeout(2 * TIMEOUT_SECONDS):
                answers = _lasts(groups, await pipeline.execute())
        except (redis.RedisError, OSError) as error:
            for _, done in some:
                if not done.done():
                    done.set_exception(_unavailable(error))
            return
        for (_, done), answer in zip(some, answers, strict=True):
            if not done.done():
                done.set_result(answer)

    def _greet(self, connection: Any) -> None:  # noqa: ANN401 - redis gives it no public type
        connection.on_connect()
        connection.send_command("INFO", "server")
        self._recognize(connection.read_response())

    async def _greet_soon(self, connection: Any) -> None:  # noqa: ANN401 - likewise
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        self._recognize(await connection.read_response())

    def _recognize(self, info: bytes) -> None:
        lines = dict(line.partition(":")[::2] for line in info.decode().splitlines())
        if lines.get("run_id") != self._home:
            self.has_moved = True
            raise OtherServerError("another Redis server, or one that was started again, answers")

    @staticmethod
    def _try(work: Callable[[], _T]) -> _T:
        try:
            return work()
        except (redis.RedisError, OSError) as error:
            raise _unavailable(error) from error


def to_limbs(amount: int) -> str:
    """An integer as the scripts read it."""
    high, low = divmod(amount, _LIMB)
    return f"{high // _LIMB}:{high % _LIMB}:{low}"


def from_limbs(text: bytes) -> int:
    """The integer that a script wrote."""
    first, second, third = map(int, text.split(b":"))
    return (first * _LIMB + second) * _LIMB + third


def _lasts(groups: Sequence[Sequence[Command]], answers: Sequence[Any]) -> list[Any]:
    found, at = [], 0
    for group in groups:
        at += len(group)
        found.append(answers[at - 1])
    return found


def _checked(check: Check, answer: Any) -> Checked:  # noqa: ANN401 - what redis parsed
    used, held, fields, was_made = answer
    return Checked(
        used=tuple([None if one is None else from_limbs(one) for one in used]),
        reserved=tuple([0 if one is None else from_limbs(one) for one in held]),
        reservation=_reservation(check.tag, fields) if fields else None,
        is_new=bool(was_made),
    )


def _reservation(tag: Tag, fields: Sequence[bytes]) -> Reservation:
    reservation_id, state, quantity, left, dimensions, lease, expires, scopes = fields
    return Reservation(
        tag=tag,
        reservation_id=reservation_id.decode(),
        quantity=from_limbs(quantity),
        left=from_limbs(left),
        dimensions=tuple((name, value) for name, value in json.loads(dimensions)),
        is_lease=lease == b"1",
        state=State(state.decode()),
        expires_ms=int(expires),
        # An empty list comes back from Lua as an empty object.
        scopes=tuple(json.loads(scopes)),
    )


def _unavailable(error: BaseException) -> UnavailableError:
    return UnavailableError(f"Redis, where quotas are counted, does not answer: {error}")
