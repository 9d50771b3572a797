"""Settings of metering without code: the environment is all there is."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from otel_metering._config import Finder
from otel_metering.contract.event import check_name
from otel_metering.errors import ConfigurationError, InvalidUsageError

DEFAULT_REQUESTS_METER: Final = "server.requests"
"""Not `http.requests`, which `meters.yaml` feeds from exported spans: those would count once more."""

DEFAULT_TOKENS_METER: Final = "gen_ai.tokens"
"""Not `llm.tokens`, which `meters.yaml` feeds from an exported histogram."""

_OFF: Final = "none"

_VARIABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "requests_meter": ("METERING_REQUESTS_METER",),
    "tokens_meter": ("METERING_TOKENS_METER",),
    "tenant_header": ("METERING_TENANT_HEADER",),
    "trust_baggage": ("METERING_TRUST_BAGGAGE",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InstrumentationSettings:
    """What `opentelemetry-instrument` makes of an application that knows nothing of metering.

    Attributes:
        requests_meter: The meter of requests [server.requests]; `none`: they are not counted.
        tokens_meter: The meter of tokens of language models [gen_ai.tokens]; `none`: they are not
            counted.
        tenant_header: The request header that names the tenant [x-tenant-id].
        trust_baggage: Whether the baggage of a request may name it, where the header does not [false].
    """

    requests_meter: str | None
    tokens_meter: str | None
    tenant_header: str
    trust_baggage: bool


def read_instrumentation_settings() -> InstrumentationSettings:
    """Read the environment.

    Raises:
        ConfigurationError: Names the variable, what it holds, and what it may hold.
    """
    find = Finder({}, os.environ, _VARIABLES)
    return InstrumentationSettings(
        requests_meter=_meter(find, "requests_meter", DEFAULT_REQUESTS_METER),
        tokens_meter=_meter(find, "tokens_meter", DEFAULT_TOKENS_METER),
        tenant_header=find.text("tenant_header") or "x-tenant-id",
        trust_baggage=find.choice("trust_baggage", ("false", "true")) == "true",
    )


def _meter(find: Finder, name: str, default: str) -> str | None:
    slug = find.text(name) or default
    if slug == _OFF:
        return None
    try:
        return check_name("meter", slug)
    except InvalidUsageError as error:
        raise ConfigurationError(f"{_VARIABLES[name][0]}: {error}, or {_OFF} for none") from error
