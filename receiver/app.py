"""Builds the receiver from its settings, starts it, and stops it in order."""

import socket
from collections.abc import Callable

from otel_metering.clock import Clock
from otel_metering.contract.meter import Meters
from otel_metering.spool import Spool, open_spool
from receiver.config import Settings
from receiver.cors import Cors
from receiver.grpc_server import ConnectionLimits, GrpcServer
from receiver.http_server import HttpApp
from receiver.ingest import Ingest, Limits
from receiver.instruments import observe
from receiver.load import load_corrections, load_seen_ids
from receiver.metering import Metering
from receiver.meters_file import MetersFile
from receiver.pipeline_stats import PipelineStats
from receiver.restore import restore_states
from receiver.rows import admitted_at_ms
from receiver.seen import SeenIds
from receiver.store.client import Store
from receiver.store.keys import ApiKeys
from receiver.store.meter_definitions import MeterDefinitions
from receiver.store.meters import ApiMeters
from receiver.store.migrate import migrate
from receiver.store.readers import prepare_readers
from receiver.telemetry import Telemetry
from receiver.tls import from_settings
from receiver.writer import Writer


class Receiver:
    """Every part of the receiver.

    Attributes:
        store: The database.
        keys: The API keys.
        made_meters: The meters that were made by API; ingest takes their events without them.
        meters_file: What `meters.yaml` says, also after it was changed.
        definitions: Writes both into the database, for dashboards.
        spool: What is acknowledged and not in the database yet.
        ingest: Takes requests.
        writer: Takes the spool into the database.
        grpc: The OTLP/gRPC server.
        http: The OTLP/HTTP application.
        telemetry: What it counts of itself.
        tls: The certificates of every edge; None: no TLS.
    """

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Open everything and rebuild the memory of ids; listens to nobody yet.

        Raises:
            ConfigurationError: A setting is wrong, or another process has the data directory.
            UnavailableError: The database did not answer.
        """
        self._settings = settings
        self.tls = from_settings(settings)
        self.meters_file = MetersFile(settings.meters_file, clock)
        # The lock of the spool comes first: a second process must not touch the engine's files.
        self.spool: Spool = open_spool(
            settings.data_dir / "spool" / "receiver.db", max_bytes=settings.max_spool_bytes
        )
        self.store = Store(settings.store_url)
        migrate(self.store, clock)
        prepare_readers(self.store)
        restore_states(self.store, self.spool)
        self.keys = ApiKeys(self.store, clock)
        self.made_meters = ApiMeters(self.store, clock)
        self.definitions = MeterDefinitions(
            self.store, clock, file=lambda: self.meters, made=self.made_meters
        )
        self.telemetry = Telemetry(clock)
        self.telemetry.also("keys", self.keys.counts.read)
        self.stats = PipelineStats(
            self.telemetry, self.store, settings.instance or socket.gethostname()
        )
        seen = load_seen_ids(self.store, self.spool, clock, max_bytes=settings.max_ids_bytes)
        self.writer = Writer(self.spool, self.store, clock, seen.written, self.telemetry)
        self.ingest = Ingest(
            metering=Metering(self.meters),
            seen=seen,
            spool=self.spool,
            clock=clock,
            limits=Limits(
                max_queue_bytes=settings.max_queue_bytes,
                max_key_bytes_per_second=settings.max_key_bytes_per_second,
                min_free_disk_bytes=settings.min_free_disk_bytes,
            ),
            pace=self.writer.pace,
            on_commit=self.writer.notify,
            corrections=load_corrections(self.store, self.spool),
            telemetry=self.telemetry,
        )
        observe_state(
            self.telemetry,
            spool=self.spool,
            seen=seen,
            count_streams=lambda: self.ingest.stream_count,
        )
        self.telemetry.gauge("ingest", "meters_stale", lambda: self.meters_file.problem is not None)
        self.grpc = GrpcServer(
            self.ingest,
            self.keys,
            limits=ConnectionLimits(
                request_bytes=settings.max_request_bytes,
                streams=settings.otlp_grpc_max_concurrent_streams,
                age_seconds=settings.otlp_grpc_max_connection_age_seconds,
                age_grace_seconds=settings.otlp_grpc_max_connection_age_grace_seconds,
                has_reflection=settings.otlp_grpc_reflection,
            ),
            tls=self.tls,
            telemetry=self.telemetry,
            is_healthy=lambda: (
                self.ingest.is_exact and self.spool.byte_count < self.spool.max_bytes
            ),
        )
        self.http = HttpApp(
            self.ingest,
            self.keys,
            max_request_bytes=settings.max_request_bytes,
            read_timeout_seconds=settings.otlp_http_read_timeout_seconds,
            cors=Cors(
                settings.cors_origins,
                settings.cors_headers,
                max_age_seconds=settings.otlp_cors_max_age_seconds,
            ),
            telemetry=self.telemetry,
        )

    @property
    def meters(self) -> Meters:
        """The definitions in force."""
        return self.meters_file.meters

    def start(self) -> None:
        """Start the threads."""
        self.keys.start()
        self.made_meters.start()
        self.definitions.start()
        self.writer.start()
        self.ingest.start()
        self.stats.start()
        self.meters_file.start(self._replace_meters)

    def stop(self) -> bool:
        """Finish what was queued, write the spool into the database, close. Call it when no edge listens.

        Returns:
            Whether everything is in the database; else the rest is in the spool, for the next start.
        """
        self.meters_file.stop()
        self.ingest.stop()
        is_drained = self.writer.stop(self._settings.drain_seconds)
        self.stats.stop()
        self.keys.stop()
        self.definitions.stop()
        self.made_meters.stop()
        self.spool.close()
        self.store.close()
        return is_drained

    def _replace_meters(self, meters: Meters) -> None:
        self.ingest.replace_metering(Metering(meters))
        self.telemetry.reloaded()


def observe_state(
    telemetry: Telemetry, *, spool: Spool, seen: SeenIds, count_streams: Callable[[], int]
) -> None:
    """Let `telemetry` see how much is held, and since when."""
    telemetry.gauge("spool", "entries", lambda: spool.entry_count)
    telemetry.gauge("spool", "size", lambda: spool.byte_count)
    telemetry.gauge("ingest", "ids", lambda: len(seen))
    telemetry.gauge("ingest", "ids_size", lambda: seen.byte_count)
    telemetry.gauge("ingest", "streams", count_streams)
    oldest = next(spool.entries(), None)
    if oldest is not None:
        since_ms = admitted_at_ms(oldest.payload)
        telemetry.found(entries=spool.entry_count, since_ns=since_ms * 1_000_000)
    observe(telemetry)
