"""TLS: certificates that are read at the start, and again when their files change.

A file that cannot be used stops the start. Later, while it is replaced or when it was replaced by a wrong
one, the certificate of before stays in use and the log says so.
"""

import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from otel_metering.errors import ConfigurationError
from receiver.config import Settings

_CERT, _KEY, _CLIENT_CA = (
    "METERING_TLS_CERT_FILE",
    "METERING_TLS_KEY_FILE",
    "METERING_TLS_CLIENT_CA_FILE",
)

CHECK_SECONDS: Final = 2.0
"""How often the files should be looked at."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """One generation of what the files hold, in PEM."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


class Tls:
    """The certificates in use.

    Attributes:
        current: The newest generation that is good.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Read the files.

        Raises:
            ConfigurationError: One cannot be read, or they do not fit together.
        """
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._contexts: list[tuple[ssl.SSLContext, bool]] = []
        self._seen = self._stamp()
        self.current = self._read()

    def context(self, *, asks_clients: bool) -> ssl.SSLContext:
        """A context for a server, TLS 1.2 and up, which is kept up to date.

        Args:
            asks_clients: Whether clients must have a certificate, if there is a file of CAs for them.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        asks = asks_clients and self._client_ca is not None
        if asks:
            context.verify_mode = ssl.CERT_REQUIRED
        self._contexts.append((context, asks))
        self._load(context, asks=asks)
        return context

    def reload(self) -> bool:
        """Take over files that have changed; returns whether it did. Never raises."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            self.current = self._read()
            for context, asks in self._contexts:
                self._load(context, asks=asks)
        except (ConfigurationError, OSError) as error:
            _log.error(
                "The changed TLS files cannot be used; those of before stay in use: %s",
                error,
                extra={"event": "tls_reload_failed"},
            )
            return False
        _log.info("TLS files were read again", extra={"event": "tls_reloaded"})
        return True

    def _load(self, context: ssl.SSLContext, *, asks: bool) -> None:
        context.load_cert_chain(self._certificate, self._key, _no_password)
        if asks:
            context.load_verify_locations(self._client_ca)

    def _read(self) -> Certificates:
        read = Certificates(
            certificate=_text(_CERT, self._certificate),
            key=_text(_KEY, self._key),
            client_ca=_text(_CLIENT_CA, self._client_ca) if self._client_ca else None,
        )
        # Into a context that nobody uses: what is wrong with them is found before anybody meets it.
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _check(
            f"{_CERT} ({self._certificate}) and {_KEY} ({self._key})",
            "a certificate chain in PEM and its private key, without a password",
            lambda: trial.load_cert_chain(self._certificate, self._key, _no_password),
        )
        if self._client_ca is not None:
            _check(
                f"{_CLIENT_CA} ({self._client_ca})",
                "certificates of CAs in PEM",
                lambda: trial.load_verify_locations(self._client_ca),
            )
        return read

    def _stamp(self) -> list[tuple[int, int, int] | None]:
        stamps: list[tuple[int, int, int] | None] = []
        for path in (self._certificate, self._key, self._client_ca):
            try:
                found = path.stat() if path else None
            except OSError:
                found = None
            stamps.append(found and (found.st_mtime_ns, found.st_size, found.st_ino))
        return stamps


def from_settings(settings: Settings) -> Tls | None:
    """What the settings ask for; None: no TLS.

    Raises:
        ConfigurationError: They are not complete, or the files cannot be used.
    """
    given = {
        _CERT: settings.tls_cert_file,
        _KEY: settings.tls_key_file,
        _CLIENT_CA: settings.tls_client_ca_file,
    }
    if settings.tls_cert_file is not None and settings.tls_key_file is not None:
        return Tls(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
    named = [name for name, path in given.items() if path is not None]
    if named:
        missing = [name for name in (_CERT, _KEY) if given[name] is None]
        raise ConfigurationError(f"{', '.join(named)} needs {' and '.join(missing)}; set it too")
    return None


def _no_password() -> str:
    return ""  # without it OpenSSL would ask the terminal


def _text(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            f"{name}: {path} cannot be read ({error.strerror}); name a file that the receiver may read"
        ) from error


def _check(names: str, wanted: str, load: Callable[[], None]) -> None:
    try:
        load()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigurationError(f"{names} must be {wanted}: {error}") from error
