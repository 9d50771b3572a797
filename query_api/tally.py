"""Counters hold what was acknowledged: loaded once, counted on as usage is admitted, compared now and then.

A counter's value is what the database has, and what waits in the spool, at one moment at which both together
have each event once. That moment has a number, the last entry of the spool: what is admitted later has a
higher one, and is added; what has a lower one is in the value, and is not. So a load is exact while usage
arrives. Admitted usage that comes during a load is noted, and applied to its result.

Counts are applied in the order of their numbers: at once where counters live in this process, by a thread of
its own where they do not, so that acknowledgements wait for no network.
"""

import logging
import queue
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Final

from otel_metering.clock import Clock
from otel_metering.errors import UnavailableError
from query_api.counters import Active, Adjust, Check, Count, Counters, Drop, Hold, Put, Reservation
from query_api.feed import Add, Commit, Feed
from query_api.quota_usage import Events, TagUsage, pending_total, stored_total, usage_of
from query_api.quotas import Book, Counter, Tag
from query_api.usage_source import Source
from receiver.store.client import ReadLimits

MAX_LOADED_TOGETHER: Final = 100
"""Counters that are loaded while the writer rests once: some tenths of a second."""

KEPT_AFTER_NS: Final = 60 * 10**9
"""How long the counter of a period that has ended is kept, for checks that are under way."""

_MS_NS: Final = 1_000_000
_TICK_SECONDS: Final = 0.5

_log = logging.getLogger(__name__)


Loading = Future[UnavailableError | None]
"""Done when a counter is loaded, or with the reason why it is not."""


class Tally:
    """Keeps counters exact. Any thread may call any method."""

    def __init__(
        self,
        *,
        counters: Counters,
        source: Source,
        book: Callable[[], Book],
        clock: Clock,
        on_settled: Callable[[Sequence[Reservation]], None],
        add: Add,
        load_seconds: float,
        is_inline: bool,
    ) -> None:
        """Put it together.

        Args:
            counters: Where counters live.
            source: Where usage is.
            book: The quotas in force.
            clock: The time.
            on_settled: Told the reservations that usage has settled.
            add: Counts for the telemetry.
            load_seconds: How long a load may take.
            is_inline: Whether counts are applied at once.
        """
        self._counters = counters
        self._source = source
        self._book = book
        self._clock = clock
        self._on_settled = on_settled
        self._add = add
        self._load_seconds = load_seconds
        # Held while counts are applied, and while a load becomes valid.
        self._lock = threading.Lock()
        self._applied = threading.Condition(self._lock)
        self._last_number = -1
        # (counter, number): counts up to this one are in its value.
        self._loaded: dict[str, tuple[Counter, int]] = {}
        self._watched: dict[str, list[tuple[int, int]]] = {}
        self._loading: dict[str, tuple[float, Loading]] = {}
        # One measurement at a time.
        self._measuring = threading.Lock()
        # Counts up to this number may be lacking in what was measured before it.
        self._fault_number = -1
        self._generation = 0
        self._is_paused = False
        self._wanted: queue.Queue[Counter | None] = queue.Queue()
        self._stopping = threading.Event()
        self._loader = threading.Thread(target=self._load_often, name="quota-load", daemon=True)
        self._feed = None if is_inline else Feed(self._apply, add)

    @property
    def loaded(self) -> list[Counter]:
        """The counters that are kept."""
        return [counter for counter, _ in list(self._loaded.values())]

    @property
    def is_behind(self) -> bool:
        """Whether counts cannot be applied at the moment."""
        return self._feed is not None and self._feed.is_behind

    def start(self) -> None:
        """Start the threads."""
        self._loader.start()
        if self._feed is not None:
            self._feed.start()

    def stop(self) -> None:
        """Apply what is queued if that is possible at once, and end."""
        self._stopping.set()
        self._wanted.put(None)
        if self._feed is not None:
            self._feed.stop()
        if self._loader.ident is not None:
            self._loader.join()

    def admitted(self, number: int, parts: Sequence[Events]) -> None:
        """Count usage: what `Ingest` calls after each commit. Raises nothing; without quotas costs nothing."""
        try:
            book = self._book()
            usage = {} if book.is_empty else usage_of(parts, book)
            if self._feed is None:
                self._apply([(number, usage)])
            else:
                self._feed.put((number, usage))
        except Exception as error:  # noqa: BLE001 - usage is durable, whatever happens here
            _log.error("Usage was not counted", exc_info=error, extra={"event": "count_failed"})
            self._add("count_failures", 1)
            self._lack(number)

    def is_loaded(self, counter: Counter) -> bool:
        """Whether its value can be trusted."""
        return counter.key in self._loaded

    def forget(self, keys: Iterable[str]) -> None:
        """These counters are not what they should be; they are loaded again when they are needed."""
        for key in keys:
            self._loaded.pop(key, None)

    def pause(self) -> None:
        """What counters had is lost: forget them all, and load none before `resume`."""
        with self._lock:
            self._is_paused = True
            self._generation += 1
            self._loaded.clear()

    def resume(self) -> None:
        """Load again what is asked for."""
        self._is_paused = False

    def _lack(self, number: int) -> None:
        """This count is in no counter: they are all loaded again."""
        with self._lock:
            self._fault_number = max(self._fault_number, number)
            self._loaded.clear()
            if self._feed is None:
                self._last_number = max(self._last_number, number)
                self._applied.notify_all()

    def want(self, counters: Collection[Counter]) -> list[Loading]:
        """Load these counters, if they are not loaded; a future for each that is not done yet.

        Raises:
            UnavailableError: A load takes longer than it may already, or there can be none now.
        """
        if self._is_paused:
            raise UnavailableError("counters are being recovered")
        now = self._clock.monotonic()
        found = []
        with self._lock:
            for one in counters:
                if one.key in self._loaded:
                    continue
                since, future = self._loading.get(one.key, (now, None))
                if future is None:
                    future = Future()
                    self._loading[one.key] = (now, future)
                    self._wanted.put(one)
                elif now - since > self._load_seconds:
                    raise UnavailableError("a counter is being loaded for too long")
                found.append(future)
        return found

    def wait_applied(self, timeout: float) -> bool:
        """Wait until everything that was admitted before this call is applied."""
        return self._feed is None or self._feed.wait(timeout)

    def _apply(self, some: Sequence[Commit]) -> None:
        settled: list[Reservation] = []
        with self._lock:
            counts = [
                count
                for number, usage in some
                for tag, one in usage.items()
                if (count := self._count(number, tag, one)) is not None
            ]
            if counts:
                for answer in self._counters.count(counts):
                    self.forget(answer.missing)
                    settled += answer.settled
            # Only now: before, it may be done again.
            for number, usage in some:
                self._note(number, usage)
                self._last_number = max(self._last_number, number)
            self._applied.notify_all()
        if settled:
            self._on_settled(settled)

    def _count(self, number: int, tag: Tag, usage: TagUsage) -> Count | None:
        deltas = []
        for key, amount in usage.amounts.items():
            loaded = self._loaded.get(key)
            if loaded is not None and number > loaded[1] and amount:
                deltas.append((key, amount))
        if not (deltas or usage.settlements):
            return None
        return Count(tag, self._source.name, number, tuple(deltas), tuple(usage.settlements))

    def _note(self, number: int, usage: dict[Tag, TagUsage]) -> None:
        if self._watched:
            for one in usage.values():
                for key, amount in one.amounts.items():
                    if key in self._watched:
                        self._watched[key].append((number, amount))

    def _load_often(self) -> None:
        while not self._stopping.is_set():
            wanted = self._next_wanted()
            if not wanted:
                continue
            error: UnavailableError | None = None
            try:
                with self._measuring:
                    self._load(wanted)
            except Exception as failure:  # noqa: BLE001 - the top of a worker loop
                error = UnavailableError(f"a counter was not loaded: {failure}")
                self._add("load_failures", 1)
                _log.warning(
                    "Counters were not loaded",
                    extra={"event": "load_failed", "error": str(failure)},
                )
            self._answer([one.key for one in wanted], error)
        with self._lock:
            waiting = list(self._loading)
        self._answer(waiting, UnavailableError("the process ends"))

    def _next_wanted(self) -> list[Counter]:
        found: dict[str, Counter] = {}
        try:
            one = self._wanted.get(timeout=_TICK_SECONDS)
            while one is not None:
                found[one.key] = one
                if len(found) == MAX_LOADED_TOGETHER:
                    break
                one = self._wanted.get_nowait()
        except queue.Empty:
            pass
        return list(found.values())

    def _answer(self, keys: Iterable[str], error: UnavailableError | None) -> None:
        with self._lock:
            done = [self._loading.pop(key) for key in keys if key in self._loading]
        for _, future in done:
            # Who waited may have given up.
            if future.set_running_or_notify_cancel():
                future.set_result(error)

    def _load(self, wanted: Sequence[Counter]) -> None:
        generation = self._generation
        for counter in wanted:
            self._hold_in(counter)
        number, totals = self._measure(wanted)
        with self._lock, self._unwatching(wanted):
            if self._is_paused or generation != self._generation:
                raise UnavailableError("counters were lost meanwhile")
            if self._fault_number > number:
                raise UnavailableError("usage came that could not be counted")
            last = max(number, self._last_number)
            puts = [
                Put(
                    counter.rule.tag,
                    counter.key,
                    totals[counter.key] + self._later(counter.key, number),
                    _until_ms(counter),
                )
                for counter in wanted
            ]
            self._counters.change(puts)
            for counter in wanted:
                self._loaded[counter.key] = counter, last
        self._add("loads", len(wanted))

    def _hold_in(self, counter: Counter) -> None:
        """Reservations that are older than the quota count against it as well."""
        rule = counter.rule
        for one in self._counters.active(Active(rule.tag)):
            if rule.scope not in one.scopes and rule.admits(dict(one.dimensions)):
                self._counters.touch(Hold(rule.tag, one.reservation_id, rule.scope))

    def _measure(self, counters: Sequence[Counter]) -> tuple[int, dict[str, int]]:
        """Their values at one moment, and its number; until they are unwatched what comes later is noted."""
        with self._lock:
            for one in counters:
                self._watched[one.key] = []
        limits = ReadLimits(seconds=self._load_seconds, rows=10**12)
        meters = self._source.meters()
        try:
            with self._source.at_rest(self._load_seconds) as pending:
                totals = {
                    one.key: stored_total(
                        self._source.store, limits, meters.find(one.rule.tag[1]), one
                    )
                    + pending_total(pending.events, one)
                    for one in counters
                }
                return pending.number, totals
        except BaseException:
            with self._lock, self._unwatching(counters):
                raise

    def _later(self, key: str, number: int) -> int:
        return sum(amount for n, amount in self._watched[key] if n > number)

    @contextmanager
    def _unwatching(self, counters: Iterable[Counter]) -> Iterator[None]:
        try:
            yield
        finally:
            for one in counters:
                self._watched.pop(one.key, None)

    def reconcile(self) -> int:
        """Compare each counter of a current period with what was stored, correct it; returns how many were wrong.

        Raises:
            MeteringError: It cannot be done now; counters that are not compared stay as they are.
        """
        now_ns = self._clock.now_ns()
        ended = [
            one
            for one in self.loaded
            if one.span.end_ns is not None and one.span.end_ns + KEPT_AFTER_NS <= now_ns
        ]
        self.forget([one.key for one in ended])
        self._counters.change([Drop(one.rule.tag, one.key) for one in ended])
        return sum(self._compare(one) for one in self.loaded if one.span.has(now_ns))

    def _compare(self, counter: Counter) -> bool:
        with self._measuring:
            number, totals = self._measure([counter])
            with self._lock, self._unwatching([counter]):
                drift = self._correct(counter, number, totals[counter.key])
        if drift:
            self._add("corrections", 1)
            _log.warning(
                "A counter was wrong and is corrected",
                extra={
                    "event": "counter_corrected",
                    "tenant_id": counter.rule.tag[0],
                    "meter": counter.rule.tag[1],
                    "nano_units": drift,
                },
            )
        return bool(drift)

    def _correct(self, counter: Counter, number: int, total: int) -> int:
        """Correct it, if it is still kept; returns by how much."""
        if not self._applied.wait_for(lambda: self._last_number >= number, self._load_seconds):
            raise UnavailableError("counts that were admitted are not applied yet")
        if counter.key not in self._loaded or self._fault_number > number:
            return 0
        line = (counter.key, counter.rule.scope, None)
        (actual,) = self._counters.check(Check(counter.rule.tag, (line,), 0)).used
        if actual is None:
            self.forget([counter.key])
            return 0
        drift = total + self._later(counter.key, number) - actual
        if drift:
            try:
                self._counters.change([Adjust(counter.rule.tag, counter.key, drift)])
            except UnavailableError:
                self.forget([counter.key])  # it may be corrected, or not
                raise
        return drift

    def begin(self, number: int) -> None:
        """Everything up to this entry was admitted before anything is counted here."""
        with self._lock:
            self._last_number = max(self._last_number, number)


def _until_ms(counter: Counter) -> int | None:
    end_ns = counter.span.end_ns
    return None if end_ns is None else (end_ns + 24 * 3_600 * 10**9) // _MS_NS
