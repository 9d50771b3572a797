"""Builds the receiver from its settings, starts it, and stops it in order."""

import logging
from pathlib import Path

import yaml

from otel_metering.clock import Clock
from otel_metering.contract.meter import Meters, parse_meters
from otel_metering.errors import ConfigurationError
from otel_metering.spool import Spool, open_spool
from receiver.config import Settings
from receiver.cors import Cors
from receiver.grpc_server import GrpcServer, Limits
from receiver.http_server import HttpApp
from receiver.identity import SeenIds
from receiver.ingest import Ingest
from receiver.metering import Metering
from receiver.rows import ids_of, words_of
from receiver.store import tables
from receiver.store.client import Store
from receiver.store.keys import ApiKeys
from receiver.store.migrate import migrate
from receiver.tls import from_settings
from receiver.writer import Writer

_log = logging.getLogger(__name__)


class Receiver:
    """Every part of the receiver.

    Attributes:
        store: The database.
        keys: The API keys.
        meters: What `meters.yaml` says.
        spool: What is acknowledged and not in the database yet.
        ingest: Takes requests.
        writer: Takes the spool into the database.
        grpc: The OTLP/gRPC server.
        http: The OTLP/HTTP application.
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
        self.meters = read_meters(settings.meters_file)
        # The lock of the spool comes first: a second process must not touch the engine's files.
        self.spool: Spool = open_spool(
            settings.data_dir / "spool" / "receiver.db", max_bytes=settings.max_spool_bytes
        )
        self.store = Store(settings.store_url)
        migrate(self.store, clock)
        self.keys = ApiKeys(self.store, clock)
        self.writer = Writer(self.spool, self.store, clock)
        self.ingest = Ingest(
            metering=Metering(self.meters),
            seen=load_seen_ids(self.store, self.spool),
            spool=self.spool,
            clock=clock,
            max_queue_bytes=settings.max_queue_bytes,
            pace=self.writer.pace,
            on_commit=self.writer.notify,
        )
        self.grpc = GrpcServer(
            self.ingest,
            self.keys,
            limits=Limits(
                request_bytes=settings.max_request_bytes,
                streams=settings.otlp_grpc_max_concurrent_streams,
                age_seconds=settings.otlp_grpc_max_connection_age_seconds,
                age_grace_seconds=settings.otlp_grpc_max_connection_age_grace_seconds,
            ),
            tls=self.tls,
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
        )

    def start(self) -> None:
        """Start the threads."""
        self.keys.start()
        self.writer.start()
        self.ingest.start()

    def stop(self) -> bool:
        """Finish what was queued, write the spool into the database, close. Call it when no edge listens.

        Returns:
            Whether everything is in the database; else the rest is in the spool, for the next start.
        """
        self.ingest.stop()
        is_drained = self.writer.stop(self._settings.drain_seconds)
        self.keys.stop()
        self.spool.close()
        self.store.close()
        return is_drained


def read_meters(path: Path | None) -> Meters:
    """Read `meters.yaml`; without a path, the one in the current folder if there is one.

    Raises:
        ConfigurationError: It cannot be read, or says something that it cannot say.
    """
    chosen = path or Path("meters.yaml")
    if path is None and not chosen.exists():
        return Meters()
    try:
        return parse_meters(yaml.safe_load(chosen.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ConfigurationError) as error:
        raise ConfigurationError(f"{chosen}: {error}") from error


def load_seen_ids(store: Store, spool: Spool) -> SeenIds:
    """Every identity that was ever admitted: those in the database, and those on their way to it."""
    seen = SeenIds()
    for table in (tables.EVENTS, tables.QUARANTINE):
        for ids in store.stream_column(f"SELECT event_id FROM {table}"):  # noqa: S608 - from tables.py
            seen.add(*words_of(ids))
    for entry in spool.entries():
        seen.add(*ids_of(entry.payload))
    _log.debug("Ids loaded", extra={"event": "ids_loaded", "ids": len(seen)})
    return seen
