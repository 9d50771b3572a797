"""Settings of the receiver: `METERING_*`, read once."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from otel_metering.contract.attributes import API_KEY_HEADER
from receiver.settings import ServiceSettings

Port = Annotated[int, Field(ge=0, le=65535)]
"""0: any free port."""


class Settings(ServiceSettings):
    """What the receiver needs to know; the defaults work on a laptop."""

    data_dir: Path = Field(
        Path("data"), description="Folder of the spool and of the embedded engine."
    )
    clickhouse_url: str = Field(
        "",
        description="chdb:///path or clickhouse://user:password@host:8123/metering. "
        "Empty: chDB in the data directory.",
    )
    meters_file: Path | None = Field(
        None, description="meters.yaml. Unset: ./meters.yaml if there is one."
    )
    otlp_host: str = Field("127.0.0.1", description="Address that OTLP listens on.")
    otlp_grpc_port: Port = Field(4317, description="OTLP/gRPC.")
    otlp_http_port: Port = Field(4318, description="OTLP/HTTP.")
    otlp_http_read_timeout_seconds: float = Field(
        30.0,
        gt=0,
        description="How long the head of an HTTP request, and then its body, may take to "
        "arrive. Late: the connection ends, with 503 if the head was complete.",
    )
    otlp_grpc_max_connection_age_seconds: int = Field(
        1_800,
        ge=0,
        description="After it a gRPC connection is ended in order, so that clients behind a load balancer "
        "spread again; 0: never.",
    )
    otlp_grpc_max_connection_age_grace_seconds: int = Field(
        60, ge=1, description="How long calls on such a connection may still take."
    )
    otlp_grpc_max_concurrent_streams: int = Field(
        256, gt=0, description="Calls at once on one gRPC connection."
    )
    otlp_grpc_reflection: bool = Field(
        default=False,
        description="Whether gRPC clients may ask, without a key, which services there are.",
    )
    otlp_cors_allowed_origins: str = Field(
        "",
        description="Web pages that may send OTLP/HTTP: origins, separated by commas, with * as in "
        "https://*.example.com. Empty: none.",
    )
    otlp_cors_allowed_headers: str = Field(
        f"authorization,{API_KEY_HEADER},content-type,content-encoding,x-requested-with",
        description="Request headers that such a page may set; * for all.",
    )
    otlp_cors_max_age_seconds: int = Field(
        0, ge=0, description="How long a browser remembers what it may send; 0: its own default."
    )
    tls_cert_file: Path | None = Field(
        None,
        description="Certificate chain (PEM) of OTLP and the query API; with METERING_TLS_KEY_FILE it "
        "turns TLS on. Files that change are read again.",
    )
    tls_key_file: Path | None = Field(None, description="Its private key (PEM).")
    tls_client_ca_file: Path | None = Field(
        None, description="CAs (PEM): OTLP clients then need a certificate of one of them (mTLS)."
    )
    admin_key: SecretStr | None = Field(
        None, description="First admin key, otm_<id>_<secret>. Unset: the first start makes one."
    )
    max_request_bytes: int = Field(
        64 * 2**20, gt=0, description="Largest request, before and after decompression."
    )
    max_queue_bytes: int = Field(
        64 * 2**20,
        gt=0,
        description="Requests waiting to be decoded, a few seconds of work: a Collector gives up after "
        "five. Beyond it senders must wait; one API key may fill half of it.",
    )
    max_key_bytes_per_second: int = Field(
        0, ge=0, description="Bytes of requests that one API key may send a second; 0: any number."
    )
    min_free_disk_bytes: int = Field(
        256 * 2**20,
        ge=0,
        description="Free space on the disk of the spool below which senders must wait.",
    )
    max_spool_bytes: int = Field(
        16 * 2**30, gt=0, description="Usage waiting for the database; beyond it senders must wait."
    )
    max_ids_bytes: int = Field(
        2**30,
        gt=0,
        description="Memory for ids already seen, 16 bytes each (explicit ids 24), and half as much "
        "again for moments; older ones are looked up in the database.",
    )
    drain_seconds: float = Field(
        30.0, ge=0, description="How long a stop may take to write the spool into the database."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severity that is logged."
    )

    instance: str = Field(
        "", description="Name of this receiver in metering.pipeline_stats. Empty: the host's name."
    )

    @property
    def cors_origins(self) -> list[str]:
        """Allowed origins."""
        return _listed(self.otlp_cors_allowed_origins)

    @property
    def cors_headers(self) -> list[str]:
        """Allowed request headers."""
        return _listed(self.otlp_cors_allowed_headers)

    @property
    def store_url(self) -> str:
        """URL of the database."""
        return self.clickhouse_url or f"chdb://{(self.data_dir / 'clickhouse').resolve()}"


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
