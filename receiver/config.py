"""Settings of the receiver: `METERING_*`, read once."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=0, le=65535)]
"""0: any free port."""


class Settings(BaseSettings):
    """What the receiver needs to know; the defaults work on a laptop."""

    model_config = SettingsConfigDict(env_prefix="METERING_", frozen=True, extra="ignore")

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
    admin_key: SecretStr | None = Field(
        None, description="First admin key, otm_<id>_<secret>. Unset: the first start makes one."
    )
    max_request_bytes: int = Field(
        64 * 2**20, gt=0, description="Largest request, before and after decompression."
    )
    max_queue_bytes: int = Field(
        256 * 2**20,
        gt=0,
        description="Requests waiting to be decoded; beyond it senders must wait.",
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
    def store_url(self) -> str:
        """URL of the database."""
        return self.clickhouse_url or f"chdb://{(self.data_dir / 'clickhouse').resolve()}"
