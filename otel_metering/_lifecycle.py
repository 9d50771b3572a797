"""Start, fork, exit: which pipeline is at work in this process.

Cells belong to the process and outlive pipelines, so that replacing one loses nothing. A forked child
drops everything it inherited, which is its parent's to send, and starts anew with its first usage.
"""

import atexit
import multiprocessing.process
import multiprocessing.util
import os
import random
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

from otel_metering._cells import MAX_WAITING_EVENTS, CellBook, Event
from otel_metering._config import Durability, Protocol, Settings, TransportMode, read_settings
from otel_metering._global_meters import mirror
from otel_metering._guard import Stats, guarded, problems
from otel_metering._lease_keeper import Desk
from otel_metering._leases import leases
from otel_metering._modes import hand_over, outbox_of
from otel_metering._parcel import gate
from otel_metering._pipeline import Edges, Pipeline
from otel_metering._record import sink
from otel_metering._self_metrics import SelfMetrics
from otel_metering.clock import SystemClock

_STOP_SECONDS: Final = 0.5
"""For each thread to end; one that waits for the network is left behind, its request stays on disk."""

_EARLY_SERIES: Final = 10_000
_EARLY_EVENTS: Final = 1_000
"""What is kept in memory, by meter and in all, for a `configure` that may never come."""

_LAST_CHANCE_SECONDS: Final = 1.0
"""How long an ending process waits for a receiver that answers."""


def _new_id() -> str:
    return str(uuid.uuid4())  # noqa: TID251 -- where the ids come from that others take as an argument


_EDGES: Final = Edges(clock=SystemClock(), new_id=_new_id, jitter=random.random)


class _Process:
    """What is at work in this process.

    Attributes:
        settings: Of the pipeline, and of a child's pipeline to come; None: not configured.
        pipeline: None: not configured, or a child that has not recorded anything.
    """

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.pipeline: Pipeline | None = None
        self.lock = threading.RLock()
        self._book = self._early_book()
        self._inherited: frozenset[Path] = frozenset()
        self._has_hooks = False
        sink.open(self._book)

    def start(self, settings: Settings) -> None:
        """Put a pipeline to work; the one before flushes and hands over its spools.

        Raises:
            ConfigurationError: `settings` cannot be used; the pipeline before goes on.
        """
        with self.lock:
            book = self._book
            pipeline = self._new_pipeline(settings, book)
            pipeline.outbox.open()
            pipeline.take_cells()
            leases.start(self._new_desk(settings))
            predecessor, self.pipeline = self.pipeline, pipeline
            self.settings = settings
            book.max_series_per_meter = settings.max_series_per_meter
            book.max_events = MAX_WAITING_EVENTS
            if predecessor is not None:
                predecessor.stop(_STOP_SECONDS)
                # What does not fit is said, and must not keep the new one from starting.
                with guarded:
                    hand_over(predecessor.outbox, pipeline.outbox)
                pipeline.take_cells()  # again: of threads that were making one just then
            self._hook()
            pipeline.start()
            self._open_sink(book, settings)
            with guarded:
                _self_metrics.show()

    def stop(self, timeout_seconds: float) -> bool:
        """Deliver what can be delivered in time, and stop. True: all of it was acknowledged."""
        if gate.is_mine():
            # This is a signal handler that interrupted its own thread's use of a spool, which is not to be
            # closed under its hands. The end of the process stops what is still at work.
            return False
        with self.lock:
            sink.close()
            pipeline, self.pipeline, self.settings = self.pipeline, None, None
            is_sent = True
            if pipeline is not None:
                is_sent = _settle(pipeline, timeout_seconds)
                pipeline.stop(_STOP_SECONDS)
                pipeline.outbox.close()
            # Only what was delivered is counted: before, the leases hold its units.
            leases.stop(_LAST_CHANCE_SECONDS, is_delivered=is_sent)
            return is_sent

    def before_fork(self) -> None:
        gate.close_for_fork()

    def after_fork_in_parent(self) -> None:
        gate.open_in_parent()

    def after_fork_in_child(self) -> None:
        """Drop all that belongs to the parent, with every lock that a thread left behind may hold."""
        gate.open_in_child()
        self.lock = threading.RLock()
        problems.reset()
        mirror.reset()
        if self.pipeline is not None:
            self._inherited |= self.pipeline.abandon()
            self.pipeline = None
        self._book.unmap()
        leases.after_fork_in_child()
        if self.settings is not None:
            self._book = self._new_book(self.settings)
            self._open_sink(self._book, self.settings)
        elif not sink.is_closed:
            self._book = self._early_book()
            sink.open(self._book)
        self._hook_into_pools()

    def after_multiprocessing_fork(self) -> None:
        # Such a child ends by os._exit, after its finalizers but without atexit.
        multiprocessing.util.Finalize(None, _at_exit_of_child, exitpriority=0)

    def _hook_into_pools(self) -> None:
        """Children of other makers end by os._exit as well; who uses them has imported them."""
        billiard = sys.modules.get("billiard.util")
        if billiard is not None:
            billiard.register_after_fork(
                self, lambda _: billiard.Finalize(None, _at_exit_of_child, exitpriority=0)
            )
        # Celery's pool is made of billiard's children, but they end without these finalizers.
        celery = sys.modules.get("celery.signals")
        if celery is not None:
            celery.worker_process_shutdown.connect(_at_exit, weak=False)

    def _open_sink(self, book: CellBook, settings: Settings) -> None:
        sink.open(
            book,
            write_event_now=self._write_event_now,
            writes_events_now=settings.keeps_usage_at_once,
        )

    def _write_event_now(self, event: Event) -> bool:
        book, pipeline = self._book, self.pipeline
        if pipeline is None:
            book.start_thread()
            pipeline = self.pipeline
        if pipeline is None:
            book.add_event(event)
            return False
        return pipeline.write_event(event)

    def _early_book(self) -> CellBook:
        """For usage before `configure`, which may never come."""
        return CellBook(
            max_series_per_meter=_EARLY_SERIES,
            max_events=_EARLY_EVENTS,
            on_new_thread=self._on_new_thread,
        )

    def _new_book(self, settings: Settings) -> CellBook:
        return CellBook(
            max_series_per_meter=settings.max_series_per_meter, on_new_thread=self._on_new_thread
        )

    def _new_pipeline(self, settings: Settings, book: CellBook) -> Pipeline:
        outbox = outbox_of(settings, instance_id=_EDGES.new_id(), inherited=self._inherited)
        return Pipeline(settings, book, outbox, _EDGES)

    def _new_desk(self, settings: Settings) -> Desk:
        return Desk(
            settings=settings,
            delivery=_Delivery(self),
            clock=_EDGES.clock,
            new_id=_EDGES.new_id,
        )

    def _on_new_thread(self) -> None:
        """In a child, the first usage starts the pipeline: most children only call exec."""
        if self.pipeline is None:
            with guarded, self.lock:
                self._start_in_child()

    def _start_in_child(self) -> None:
        if self.pipeline is None and self.settings is not None:
            self.pipeline = self._new_pipeline(self.settings, self._book)
            self.pipeline.take_cells()
            self.pipeline.start()

    def _hook(self) -> None:
        if self._has_hooks:
            return
        self._has_hooks = True
        # While what was there before is still there, e.g. the application's own MeterProvider; the last
        # word has the handler of the import.
        atexit.register(_flush_at_exit)
        multiprocessing.util.register_after_fork(self, _Process.after_multiprocessing_fork)
        if multiprocessing.process.parent_process() is not None:
            self.after_multiprocessing_fork()


class _Delivery:
    """What leases have to know of usage; `False` while a pipeline takes over from another."""

    def __init__(self, process: _Process) -> None:
        self._process = process

    def flush(self) -> bool:
        return self._with_pipeline(Pipeline.flush)

    def is_all_delivered(self) -> bool:
        return self._with_pipeline(lambda one: one.outbox.pending_requests == 0)

    def _with_pipeline(self, ask: Callable[[Pipeline], bool]) -> bool:
        lock = self._process.lock
        if not lock.acquire(blocking=False):
            return False
        try:
            pipeline = self._process.pipeline
            return pipeline is not None and ask(pipeline)
        finally:
            lock.release()


_process = _Process()


def configure(
    *,
    service_name: str | None = None,
    endpoint: str | None = None,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    spool_dir: str | os.PathLike[str] | None = None,
    spool_max_bytes: int | None = None,
    transport_mode: TransportMode | None = None,
    durability: Durability | None = None,
    flush_interval_seconds: float | None = None,
    batch_size: int | None = None,
    max_series_per_meter: int | None = None,
    timeout_seconds: float | None = None,
    compression: Literal["gzip", "none"] | None = None,
    protocol: Protocol | None = None,
    certificate_file: str | None = None,
    client_certificate_file: str | None = None,
    client_key_file: str | None = None,
    retry_max_attempts: int | None = None,
    retry_initial_seconds: float | None = None,
    retry_max_seconds: float | None = None,
    api_url: str | None = None,
    quota_fail_mode: Literal["open", "closed"] | None = None,
    lease_seconds: float | None = None,
) -> None:
    """Start counting, or go on with other settings.

    An argument beats `METERING_*`, which beats the `OTEL_*` variable of the same meaning, which beats the
    default. What was recorded under earlier settings is sent under the new ones. While a test captures usage
    (`otel_metering.testing`), settings are checked and nothing is started.

    Usage is safe once it is flushed; a process that ends normally flushes first. One that is killed, by a
    SIGTERM without handler too, loses what it recorded since the last flush, unless `durability` is "mmap"
    or "full": then the next process of the service finds and sends all of it.

    Args:
        service_name: `service.name` [OTEL_SERVICE_NAME].
        endpoint: OTLP base URL [METERING_ENDPOINT, OTEL_EXPORTER_OTLP_ENDPOINT; http://localhost:4318, with
            gRPC http://localhost:4317].
        api_key: Sent as bearer token [METERING_API_KEY].
        headers: Sent with each request [METERING_HEADERS, OTEL_EXPORTER_OTLP_HEADERS].
        spool_dir: Folder where usage waits until it is acknowledged [METERING_SPOOL_DIR;
            otel-metering/spool in XDG_STATE_HOME or ~/.local/state].
        spool_max_bytes: Bound on what waits there for this process [METERING_SPOOL_MAX_BYTES; 1 GiB, in
            memory 64 MiB].
        transport_mode: "durable": usage waits on disk until it is acknowledged. "memory": it waits in
            memory. "global": instruments of the application's own MeterProvider count it, at most once.
            "mirror": durable, and counted there as well [METERING_TRANSPORT_MODE; durable].
        durability: "normal": flushed usage survives the end of the process. "mmap": all usage does, also
            of one that is killed. "full": and flushed usage, and each event with an id, survives a power
            failure [METERING_DURABILITY; normal].
        flush_interval_seconds: From memory to disk [METERING_BATCH_INTERVAL_SECONDS; 1].
        batch_size: Points in one request [METERING_BATCH_SIZE; 2000].
        max_series_per_meter: Combinations of tenant and dimensions that are kept apart; more are counted
            for their tenant, without dimensions [METERING_MAX_SERIES_PER_METER; 50000].
        timeout_seconds: For connecting, each read and each write [METERING_TIMEOUT_SECONDS; 10].
        compression: Of requests [METERING_COMPRESSION, OTEL_EXPORTER_OTLP_COMPRESSION; gzip].
        protocol: Of OTLP; "grpc" needs `otel-metering[grpc]` [METERING_PROTOCOL,
            OTEL_EXPORTER_OTLP_PROTOCOL; http/protobuf].
        certificate_file: CA certificates [METERING_CERTIFICATE_FILE, OTEL_EXPORTER_OTLP_CERTIFICATE;
            the system's].
        client_certificate_file: Own certificate, where the receiver asks for one
            [METERING_CLIENT_CERTIFICATE_FILE, OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE].
        client_key_file: Its private key [METERING_CLIENT_KEY_FILE, OTEL_EXPORTER_OTLP_CLIENT_KEY].
        retry_max_attempts: Attempts before a request is set aside on disk [METERING_RETRY_MAX_ATTEMPTS;
            without end].
        retry_initial_seconds: Pause after a first failure; doubles with each [0.5].
        retry_max_seconds: Longest pause [30].
        api_url: Of the query API, which is asked about quotas [METERING_API_URL; http://127.0.0.1:8080].
        quota_fail_mode: When it does not answer, "open" allows and "closed" denies
            [METERING_QUOTA_FAIL_MODE; open].
        lease_seconds: How long units that are reserved ahead stay reserved when this process dies
            [METERING_LEASE_SECONDS; 300].

    Raises:
        ConfigurationError: A setting is wrong; the message names it. Earlier settings stay in force.
    """
    arguments = dict(locals())
    settings = read_settings(**arguments)
    if not sink.is_captured:
        _process.start(settings)


def flush(timeout_seconds: float = 10.0, *, send: bool = False) -> bool:
    """Write all usage recorded so far to disk; it survives this process from then on.

    Args:
        timeout_seconds: How long to wait for the receiver.
        send: Also wait until the receiver acknowledged everything that waits in this process's spools.

    Returns:
        Whether it is on disk and, with `send`, acknowledged. True if there is nothing to do.
    """
    pipeline = _process.pipeline
    if pipeline is None or sink.is_captured:
        return True
    is_flushed = pipeline.flush()
    if not send:
        return is_flushed
    return pipeline.sender.wait_until_sent(timeout_seconds, even_if_failing=True) and is_flushed


def shutdown(timeout_seconds: float = _LAST_CHANCE_SECONDS) -> bool:
    """Flush, give the receiver a short chance, and stop. Usage recorded afterwards is not counted.

    What is not acknowledged by then stays on disk, and is sent by the next process of this service.

    Args:
        timeout_seconds: How long to wait for a receiver that answers. One that fails is not waited for.

    Returns:
        Whether everything was acknowledged.
    """
    return sink.is_captured or _process.stop(timeout_seconds)


def settle() -> None:
    """Flush, and give the receiver a short chance: this process may be killed next."""
    pipeline = _process.pipeline
    if pipeline is not None and not sink.is_captured:
        _settle(pipeline, _LAST_CHANCE_SECONDS)


def stats() -> Stats:
    """Return what was counted in this process beside usage; all zero is good, except `sent_requests`."""
    pipeline = _process.pipeline
    counts = problems.counts()
    if pipeline is None:
        return Stats(**counts)
    return Stats(
        **counts,
        sent_requests=pipeline.sender.sent_count,
        pending_requests=pipeline.outbox.pending_requests,
        pending_bytes=pipeline.outbox.pending_bytes,
    )


_self_metrics: Final = SelfMetrics(stats)


def _settle(pipeline: Pipeline, timeout_seconds: float) -> bool:
    is_flushed = pipeline.flush()
    return pipeline.sender.wait_until_sent(timeout_seconds, even_if_failing=False) and is_flushed


def _at_exit(**_signal: object) -> None:
    with guarded:
        _process.stop(_LAST_CHANCE_SECONDS)


def _at_exit_of_child() -> None:
    """Stop once the other threads have ended: these finalizers run before Python waits for them."""
    with guarded:
        me = threading.current_thread()
        others = [one for one in threading.enumerate() if one is not me and not one.daemon]
        if not others:
            _at_exit()
            return
        flush()
        threading.Thread(target=_stop_after, args=(others,), name="otel-metering-exit").start()


def _stop_after(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join()
    _at_exit()


def _flush_at_exit() -> None:
    with guarded:
        flush()


# Now and not when configured: the last to be registered is the first to be called, and an application's own
# handlers, which may record usage, are to be called before.
atexit.register(_at_exit)
# At once as well: what was counted before `configure` is the parent's too.
os.register_at_fork(
    before=_process.before_fork,
    after_in_parent=_process.after_fork_in_parent,
    after_in_child=_process.after_fork_in_child,
)
