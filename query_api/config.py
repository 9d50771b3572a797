"""Settings of the query API: `METERING_*`, read once."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from receiver.settings import ServiceSettings

Port = Annotated[int, Field(ge=0, le=65535)]


class Settings(ServiceSettings):
    """What the query API needs to know; the defaults work on a laptop."""

    api_host: str = Field("127.0.0.1", description="Address that the query API listens on.")
    api_port: Port = Field(
        8080,
        description="Query API; 0: any free port. Unset, `otel-metering receiver` takes 8081.",
    )
    receiver_url: str = Field(
        "http://127.0.0.1:8081",
        description="Query API of the receiver, where `otel-metering api` hands on what only that may decide.",
    )
    receiver_ca_file: Path | None = Field(
        None, description="CAs (PEM) of that address, if it is https. Unset: those of the system."
    )
    metrics_public: bool = Field(
        default=False,
        description="Whether /metrics needs no key. Else: one with scope query, of no tenant.",
    )
    api_cors_allowed_origins: str = Field(
        "",
        description="Web pages that may read the query API (GET, with a token): origins, separated by "
        "commas, with * as in https://*.example.com. Empty: none.",
    )
    access_log: bool = Field(
        default=False,
        description="Whether each request to the query API is a line of log, at INFO: method, route, "
        "status, duration, bytes, key id, request id; no path, query, header or key.",
    )
    query_max_seconds: float = Field(
        30.0, gt=0, description="How long one read of the query API may take."
    )
    query_max_rows: int = Field(
        1_000_000_000, gt=0, description="Rows of tables that one read of the query API may scan."
    )

    @property
    def cors_origins(self) -> list[str]:
        """Allowed origins."""
        return [part.strip() for part in self.api_cors_allowed_origins.split(",") if part.strip()]

    clickhouse_host: str = Field(
        "127.0.0.1", description="Address of the ClickHouse endpoint of the embedded engine."
    )
    clickhouse_port: Annotated[int, Field(ge=-1, le=65535)] = Field(
        8123, description="Its port; 0: any free port; -1: no endpoint."
    )
    clickhouse_admin_password: SecretStr | None = Field(
        None,
        description="Password of its user admin, who may do anything. Unset: there is no such user.",
    )
    clickhouse_max_reads: int = Field(
        4, gt=0, le=64, description="Statements of its readers that run at once; others wait."
    )
    clickhouse_max_result_rows: int = Field(
        1_000_000, gt=0, description="Rows that one answer to a reader there may have."
    )
    clickhouse_max_result_bytes: int = Field(
        256 * 2**20, gt=0, description="Bytes of such an answer, before it has a format."
    )
    clickhouse_max_memory_bytes: int = Field(
        2 * 2**30, gt=0, description="Memory that one statement of a reader there may take."
    )

    redis_url: SecretStr | None = Field(
        None,
        description="redis://, rediss:// or unix://: quotas are counted there, for several processes. Its "
        "maxmemory-policy must be noeviction. Unset: in this process.",
    )
    quota_hard_unavailable: Literal["open", "closed"] = Field(
        "closed", description="What hard quotas answer when they cannot be counted: open allows."
    )
    quota_soft_unavailable: Literal["open", "closed"] = Field(
        "open", description="What soft quotas answer when they cannot be counted."
    )
    quota_load_seconds: float = Field(
        5.0,
        gt=0,
        description="How long a check may wait for a counter that is read from the database.",
    )
    quota_reconcile_seconds: float = Field(
        60.0, gt=0, description="Time between comparisons of the counters with the database."
    )
    quota_recovery_seconds: float = Field(
        3.0,
        ge=0,
        description="How long hard quotas refuse after Redis lost its data, so that every process can "
        "bring back its reservations; above two seconds if there are several processes.",
    )
    quota_usage_seconds: float = Field(
        60.0,
        ge=0,
        description="Time between writes of metering.quota_usage, which dashboards and alert rules read; 0: "
        "never.",
    )


class ReceiverSettings(Settings):
    """The same for a receiver that has API processes in front of it, perhaps on the same machine."""

    api_port: Port = 8081
