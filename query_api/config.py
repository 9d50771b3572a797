"""Settings of the query API: `METERING_*`, read once."""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What the query API needs to know; the defaults work on a laptop."""

    model_config = SettingsConfigDict(env_prefix="METERING_", frozen=True, extra="ignore")

    api_host: str = Field("127.0.0.1", description="Address that the query API listens on.")
    api_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        8080, description="Query API; 0: any free port."
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
