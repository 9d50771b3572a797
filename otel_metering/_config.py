"""Settings of the SDK: argument beats `METERING_*` beats `OTEL_*` beats default.

The only module of the SDK that reads the environment, and only when asked.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import urlsplit

from opentelemetry.sdk.resources import Resource
from opentelemetry.util.re import parse_env_headers
from opentelemetry.util.types import AttributeValue

from otel_metering.contract.attributes import SERVICE_NAME
from otel_metering.errors import ConfigurationError

_log = logging.getLogger("otel_metering")

Protocol = Literal["http/protobuf", "grpc"]
Durability = Literal["normal", "mmap", "full"]
TransportMode = Literal["durable", "memory", "global", "mirror"]

C = TypeVar("C", bound=str)

_DEFAULT_ENDPOINTS: Final = {
    "http/protobuf": "http://localhost:4318",
    "grpc": "http://localhost:4317",
}
"""OpenTelemetry specification, OTLP exporter configuration."""

_VARIABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "endpoint": ("METERING_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"),
    "api_key": ("METERING_API_KEY",),
    "headers": ("METERING_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"),
    "certificate_file": ("METERING_CERTIFICATE_FILE", "OTEL_EXPORTER_OTLP_CERTIFICATE"),
    "client_certificate_file": (
        "METERING_CLIENT_CERTIFICATE_FILE",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
    ),
    "client_key_file": ("METERING_CLIENT_KEY_FILE", "OTEL_EXPORTER_OTLP_CLIENT_KEY"),
    "protocol": ("METERING_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
    "compression": ("METERING_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"),
    "insecure": ("METERING_INSECURE", "OTEL_EXPORTER_OTLP_INSECURE"),
    "timeout_seconds": ("METERING_TIMEOUT_SECONDS",),
    "transport_mode": ("METERING_TRANSPORT_MODE",),
    "spool_dir": ("METERING_SPOOL_DIR",),
    "spool_max_bytes": ("METERING_SPOOL_MAX_BYTES",),
    "durability": ("METERING_DURABILITY",),
    "flush_interval_seconds": ("METERING_BATCH_INTERVAL_SECONDS",),
    "batch_size": ("METERING_BATCH_SIZE",),
    "max_series_per_meter": ("METERING_MAX_SERIES_PER_METER",),
    "retry_max_attempts": ("METERING_RETRY_MAX_ATTEMPTS",),
    "api_url": ("METERING_API_URL",),
    "quota_fail_mode": ("METERING_QUOTA_FAIL_MODE",),
    "lease_seconds": ("METERING_LEASE_SECONDS",),
}
"""Where a setting is looked for, best first. OTEL_EXPORTER_OTLP_TIMEOUT is not honoured: languages
disagree whether it is seconds or milliseconds. Nor are variables of one signal, such as
OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: usage is one stream to one receiver, whatever it is sent as. Nor is
OTEL_SDK_DISABLED: who switches telemetry off does not mean to give usage away."""

_CLIENT_VARIABLES: Final[Mapping[str, tuple[str, ...]]] = {
    "url": ("METERING_API_URL",),
    "api_key": ("METERING_API_KEY",),
    "certificate_file": ("METERING_CERTIFICATE_FILE",),
    "timeout": (),
    "connect_timeout": (),
    "total_timeout": (),
    "max_retries": (),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Checked settings.

    Attributes:
        service_name: The resource attribute `service.name`.
        resource: All resource attributes except `service.instance.id`.
        protocol: Of OTLP; "grpc" needs the extra `grpc`.
        endpoint: OTLP base URL; over HTTP `/v1/metrics` and `/v1/logs` are added to it.
        headers: Sent with every request; holds the API key.
        certificate_file: CA certificates (PEM) for https; None: the system's.
        client_certificate_file: Our own certificate (PEM), where the receiver asks for one.
        client_key_file: Its private key (PEM).
        compression: Of request bodies.
        timeout_seconds: For connecting, and for each read and write.
        transport_mode: "durable": on disk, then sent. "memory": sent from memory. "global": counted by
            instruments of the application's own MeterProvider. "mirror": durable, and counted there too.
        spool_dir: Folder of all spools; each service has a folder in it, each process a file.
        spool_max_bytes: Bound on what waits in this process's spool; in memory, it is 64 MiB by default.
        durability: What survives at once. "normal": what was flushed survives the process. "mmap":
            all usage does. "full": and what was flushed, and each event, a power failure.
        flush_interval_seconds: Between two flushes: what a SIGKILL can cost with durability "normal".
        batch_size: Points per request.
        max_series_per_meter: Combinations of tenant and dimensions in memory; more lose dimensions.
        retry_max_attempts: Attempts before a request is set aside; None: without end.
        retry_initial_seconds: Pause after the first failed attempt; doubles with each.
        retry_max_seconds: Longest pause, unless the receiver asks for a longer one.
        api_url: Of the query API, which is asked about quotas; `/v1/meter/...` is added to it.
        quota_fail_mode: What an enforced quota does when it cannot be asked: "open" allows, "closed"
            denies.
        lease_seconds: How long units that are reserved ahead stay reserved when this process dies.
    """

    service_name: str
    resource: Mapping[str, AttributeValue]
    protocol: Protocol
    endpoint: str
    headers: Mapping[str, str] = field(repr=False)
    certificate_file: str | None
    client_certificate_file: str | None
    client_key_file: str | None
    compression: Literal["gzip", "none"]
    timeout_seconds: float
    transport_mode: TransportMode
    spool_dir: Path
    spool_max_bytes: int
    durability: Durability
    flush_interval_seconds: float
    batch_size: int
    max_series_per_meter: int
    retry_max_attempts: int | None
    retry_initial_seconds: float
    retry_max_seconds: float
    api_url: str
    quota_fail_mode: Literal["open", "closed"]
    lease_seconds: float

    @property
    def keeps_usage_at_once(self) -> bool:
        """Whether a kill of the process costs nothing, rather than what was not flushed yet."""
        return self.durability != "normal" and self.transport_mode in ("durable", "mirror")


def read_settings(**arguments: object) -> Settings:
    """Complete `arguments` (None: not given) from the environment, and check all of it.

    Raises:
        ConfigurationError: Names the setting, what it holds, and what it may hold.
    """
    find = Finder(arguments, os.environ, _VARIABLES)
    service_name = find.text("service_name")
    given = {SERVICE_NAME: service_name} if service_name is not None else {}
    # Reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES as every OpenTelemetry SDK does.
    resource = dict(Resource.create(given).attributes)
    _check_resource(resource)
    protocol = _protocol(find)
    transport_mode: TransportMode = find.choice(
        "transport_mode", ("durable", "memory", "global", "mirror")
    )
    in_memory = transport_mode in ("memory", "global")
    return Settings(
        service_name=str(resource[SERVICE_NAME]),
        resource=resource,
        protocol=protocol,
        endpoint=_url(
            find, "endpoint", _DEFAULT_ENDPOINTS[protocol], adds_scheme=protocol == "grpc"
        ),
        headers=_headers(find),
        certificate_file=find.text("certificate_file"),
        client_certificate_file=find.text("client_certificate_file"),
        client_key_file=find.text("client_key_file"),
        compression=find.choice("compression", ("gzip", "none")),
        timeout_seconds=find.number("timeout_seconds", 10.0),
        transport_mode=transport_mode,
        spool_dir=_spool_dir(find, has_files=not in_memory),
        spool_max_bytes=find.whole("spool_max_bytes", 2**26 if in_memory else 2**30),
        durability=find.choice("durability", ("normal", "mmap", "full")),
        flush_interval_seconds=find.number("flush_interval_seconds", 1.0),
        batch_size=find.whole("batch_size", 2000),
        max_series_per_meter=find.whole("max_series_per_meter", 50_000),
        retry_max_attempts=find.whole("retry_max_attempts", 0) or None,
        retry_initial_seconds=find.number("retry_initial_seconds", 0.5),
        retry_max_seconds=find.number("retry_max_seconds", 30.0),
        api_url=_url(find, "api_url", "http://127.0.0.1:8080"),
        quota_fail_mode=find.choice("quota_fail_mode", ("open", "closed")),
        lease_seconds=find.number("lease_seconds", 300.0),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """Checked settings of a client of the query API.

    Attributes:
        url: Where the query API is [http://127.0.0.1:8080]; `/v1/meter/...` is added to it.
        api_key: Sent as `Authorization: Bearer`; a key or a token.
        certificate_file: CA certificates (PEM) for https; None: the system's.
        timeout: Seconds for one attempt, from connecting to the last byte of the answer [30].
        connect_timeout: Seconds to connect [5].
        total_timeout: Seconds for all attempts of one call and the pauses between them [120].
        max_retries: Attempts after the first one [4]; 0: none.
    """

    url: str
    api_key: str = field(repr=False)
    certificate_file: str | None
    timeout: float
    connect_timeout: float
    total_timeout: float
    max_retries: int


def read_client_settings(**arguments: object) -> ClientSettings:
    """Complete `arguments` (None: not given) from the environment, and check all of it.

    Raises:
        ConfigurationError: Names the setting, what it holds, and what it may hold.
    """
    find = Finder(arguments, os.environ, _CLIENT_VARIABLES)
    api_key = find.text("api_key")
    if api_key is None:
        raise ConfigurationError("there is no API key; give api_key, or set METERING_API_KEY")
    _check_header("api_key", api_key)
    return ClientSettings(
        url=_url(find, "url", "http://127.0.0.1:8080"),
        api_key=api_key,
        certificate_file=find.text("certificate_file"),
        timeout=find.number("timeout", 30.0),
        connect_timeout=find.number("connect_timeout", 5.0),
        total_timeout=find.number("total_timeout", 120.0),
        max_retries=find.whole("max_retries", 4, at_least=0),
    )


def is_under_pytest() -> bool:
    """Whether a test of pytest runs in this very process; a child's inherited variable is not enough."""
    return "pytest" in sys.modules and "PYTEST_CURRENT_TEST" in os.environ


class Finder:
    """Looks a setting up by name, and complains by the name under which it was found."""

    def __init__(
        self,
        arguments: Mapping[str, object],
        environment: Mapping[str, str],
        variables: Mapping[str, tuple[str, ...]],
    ) -> None:
        self.arguments = arguments
        self.environment = environment
        self.variables = variables

    def find(self, name: str) -> tuple[object, str]:
        """The value, None if nobody gave one, and where it came from."""
        if self.arguments.get(name) is not None:
            return self.arguments[name], name
        for variable in self.variables.get(name, ()):
            if self.environment.get(variable):
                return self.environment[variable], variable
        return None, name

    def text(self, name: str) -> str | None:
        value, source = self.find(name)
        if value is None or (isinstance(value, str) and value):
            return value
        raise ConfigurationError(f"{source} is {value!r}; it must be text that is not empty")

    def choice(self, name: str, choices: tuple[C, ...]) -> C:
        """One of `choices`; the first is the default."""
        value, source = self.find(name)
        if value is None:
            return choices[0]
        for choice in choices:
            if choice == value:
                return choice
        raise ConfigurationError(f"{source} is {value!r}; it must be {' or '.join(choices)}")

    def number(self, name: str, default: float) -> float:
        value, source = self.find(name)
        if value is None:
            return default
        try:
            number = float(value) if isinstance(value, (str, int, float)) else 0.0
        except ValueError:
            number = 0.0
        if isfinite(number) and number > 0:
            return number
        raise ConfigurationError(f"{source} is {value!r}; it must be a number of seconds above 0")

    def whole(self, name: str, default: int, at_least: int = 1) -> int:
        value, source = self.find(name)
        if value is None:
            return default
        try:
            number = int(value) if isinstance(value, (str, int)) else at_least - 1
        except ValueError:
            number = at_least - 1
        if number >= at_least:
            return number
        raise ConfigurationError(
            f"{source} is {value!r}; it must be a whole number above {at_least - 1}"
        )


def _check_resource(resource: Mapping[str, AttributeValue]) -> None:
    for name, value in resource.items():
        try:
            f"{name}{value!s}".encode()
        except UnicodeEncodeError as error:
            raise ConfigurationError(
                f"the resource attribute {name!r} is {value!r}; it must be text that UTF-8 can express"
            ) from error


def _protocol(find: Finder) -> Protocol:
    endpoint, of_endpoint = find.find("endpoint")
    _, of_protocol = find.find("protocol")
    is_of_another = of_protocol.startswith("OTEL_") and not of_endpoint.startswith("OTEL_")
    if endpoint is not None and is_of_another:
        # That of the traces' endpoint, which opentelemetry-distro sets to "grpc" where nobody did.
        return "http/protobuf"
    return find.choice("protocol", ("http/protobuf", "grpc"))


def _url(find: Finder, name: str, default: str, *, adds_scheme: bool = False) -> str:
    value, source = find.find(name)
    endpoint = default if value is None else str(value)
    if adds_scheme and "://" not in endpoint:
        # OpenTelemetry specification, OTLP exporter: `insecure` is for endpoints without a scheme.
        is_insecure = str(find.find("insecure")[0]).lower() == "true"
        endpoint = f"{'http' if is_insecure else 'https'}://{endpoint}"
    try:
        parts = urlsplit(endpoint)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise ConfigurationError(f"{source} is {value!r}; it must be a URL such as {default}")
    return endpoint.rstrip("/")


def _headers(find: Finder) -> dict[str, str]:
    value, source = find.find("headers")
    if isinstance(value, str):
        value = parse_env_headers(value, liberal=True)
    if value is not None and not isinstance(value, Mapping):
        raise ConfigurationError(f"{source} must be a mapping of header names to values")
    headers = {str(name).lower(): str(text) for name, text in (value or {}).items()}
    api_key = find.text("api_key")
    if api_key is not None:
        headers["authorization"] = f"Bearer {api_key}"
    for name, text in headers.items():
        _check_header(f"{source}: {name!r}", name + text)
    return headers


def _check_header(what: str, text: str) -> None:
    # Not in the message: what the header holds may be secret.
    if not (text.isascii() and text.isprintable()):
        raise ConfigurationError(f"{what} must be printable ASCII")


def _spool_dir(find: Finder, *, has_files: bool) -> Path:
    value, source = find.find("spool_dir")
    if value is None:
        # Without files no folder is made, not even looked for.
        return _default_spool_dir(find.environment) if has_files else Path()
    if isinstance(value, (str, os.PathLike)):
        return Path(value).expanduser()
    raise ConfigurationError(f"{source} is {value!r}; it must be a path")


def _default_spool_dir(environment: Mapping[str, str]) -> Path:
    state = Path(environment.get("XDG_STATE_HOME") or "~/.local/state") / "otel-metering" / "spool"
    try:
        folder = state.expanduser()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        folder = state
    temporary = Path(tempfile.gettempdir()) / f"otel-metering-{os.getuid()}"
    _log.warning(
        "%s cannot be written; usage waits in %s, which may not survive a restart of the machine: "
        "set METERING_SPOOL_DIR",
        folder,
        temporary,
        extra={"event": "spool_dir_fallback"},
    )
    _make_private(temporary)
    return temporary


def _make_private(folder: Path) -> None:
    # Anyone may write into the temp dir: a folder that somebody else put there could be read by them.
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.lstat().st_uid == os.getuid():
            return
    except OSError as error:
        raise ConfigurationError(
            f"no folder for the spool can be made: {error}; set METERING_SPOOL_DIR"
        ) from error
    raise ConfigurationError(f"{folder} belongs to another user; set METERING_SPOOL_DIR")
