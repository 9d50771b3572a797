"""Certificates of a connection, checked when the SDK is configured."""

import ssl

from otel_metering._config import Settings
from otel_metering.errors import ConfigurationError


def client_context(settings: Settings) -> ssl.SSLContext:
    """The context of a connection to the receiver; its files are read now.

    Raises:
        ConfigurationError: A file cannot be used; the message names the setting.
    """
    try:
        context = ssl.create_default_context(cafile=settings.certificate_file)
    except OSError as error:
        raise ConfigurationError(
            f"certificate_file {settings.certificate_file} cannot be read: {error}"
        ) from error
    if settings.client_certificate_file is None:
        if settings.client_key_file is not None:
            raise ConfigurationError(
                "client_key_file needs client_certificate_file; set it too "
                "(OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE)"
            )
        return context
    try:
        # A password cannot be asked for here: an empty one makes a locked key an error.
        context.load_cert_chain(
            settings.client_certificate_file, settings.client_key_file, password=""
        )
    except OSError as error:
        raise ConfigurationError(
            f"client_certificate_file {settings.client_certificate_file} and client_key_file "
            f"{settings.client_key_file} cannot be used together: {error}"
        ) from error
    return context
