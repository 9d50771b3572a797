"""Which receiver the settings name, by the protocol that it speaks."""

from otel_metering._answers import Destination
from otel_metering._config import Settings
from otel_metering._otlp_http import HttpDestination
from otel_metering.clock import Clock
from otel_metering.errors import ConfigurationError


def destination_of(settings: Settings, clock: Clock) -> Destination:
    """Prepare to send, without connecting.

    Raises:
        ConfigurationError: A file or a header cannot be used, or grpc is not installed.
    """
    if settings.protocol == "http/protobuf":
        return HttpDestination(settings, clock)
    try:
        from otel_metering._otlp_grpc import GrpcDestination  # noqa: PLC0415 - the SDK installs without it
    except ModuleNotFoundError as error:
        if error.name != "grpc":
            raise
        raise ConfigurationError(
            "protocol grpc needs grpcio; run: pip install 'otel-metering[grpc]', or choose http/protobuf"
        ) from error
    return GrpcDestination(settings)
