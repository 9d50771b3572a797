"""Shapes of keys and tokens."""

from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from query_api.schemas import Closed
from query_api.tokens import MAX_METERS, MAX_TTL_SECONDS
from receiver.store.keys import Scope

MAX_OVERLAP_SECONDS: Final = 30 * 86_400
MAX_RATE: Final = 1_000_000


class NewKey(Closed):
    """A key to make."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"name": "billing job", "scopes": ["query"], "tenant_id": "tenant_a"}
        }
    )

    name: str = Field(min_length=1, max_length=200, description="For people.")
    scopes: list[Scope] = Field(min_length=1, description="What it may do.")
    tenant_id: str | None = Field(None, description="Bind it to this tenant; null: any tenant.")
    expires_at: AwareDatetime | None = Field(None, description="RFC 3339; null: never.")
    rate_limit_per_second: Annotated[int, Field(ge=1, le=MAX_RATE)] | None = Field(
        None,
        description="Requests to this API that it may send, with a second of burst, to each process of "
        "the service; null: any number. Beyond it the answer is 429 with Retry-After.",
    )


class Rotation(Closed):
    """How a key is rotated."""

    model_config = ConfigDict(json_schema_extra={"example": {"overlap_seconds": 3600}})

    overlap_seconds: int = Field(
        default=3_600, ge=0, le=MAX_OVERLAP_SECONDS, description="How long the old key still works."
    )


class Key(BaseModel):
    """A key, without its secret."""

    key_id: str
    name: str
    scopes: list[Scope]
    tenant_id: str | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None = Field(
        description="On any edge. Known at once in the process that it was used on, and within about a "
        "minute everywhere; null: never."
    )
    rate_limit_per_second: int | None
    replaces: str | None = Field(description="The key in whose place it was made.")
    rotated_to: str | None = Field(description="The key that takes its place.")


class CreatedKey(Key):
    """A key, with its secret, which is shown this once."""

    key: str


class KeysParameters(BaseModel):
    """Which page."""

    limit: int = Field(1_000, ge=1, le=10_000, description="Keys on one page.")
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")


class KeysAnswer(BaseModel):
    """Oldest first, revoked ones included."""

    data: list[Key]
    next_cursor: str | None = Field(
        description="Continues behind this page; null: it was the last."
    )


class NewToken(Closed):
    """A read token to make."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"tenant_id": "tenant_a", "ttl_seconds": 900}}
    )

    tenant_id: str | None = Field(
        None,
        description="Whose usage it may read. May be left out if the key is bound to a tenant.",
    )
    ttl_seconds: int = Field(ge=1, le=MAX_TTL_SECONDS, description="How long it works.")
    meters: Annotated[list[str], Field(min_length=1, max_length=MAX_METERS)] | None = Field(
        None, description="The only meters that it may read; null: all."
    )


class CreatedToken(BaseModel):
    """A token, which is shown this once."""

    token: str
    expires_at: str = Field(description="First moment at which it no longer works.")
