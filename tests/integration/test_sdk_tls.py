"""TLS of the SDK, both protocols, and the settings that OpenTelemetry has for it."""

import shutil
import ssl
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import pytest

import otel_metering
from otel_metering import record
from otel_metering._config import read_settings
from otel_metering.errors import ConfigurationError
from tests.conformance.test_tls import Pki
from tests.integration.sdk_backend import Backend, configured, deliver, running_backend
from tests.integration.sdk_grpc_backend import running_grpc_backend
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="certificates are made with the openssl command"
)

PROTOCOLS = ["http/protobuf", "grpc"]
OF_A_CLIENT = {
    "OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.crt",
    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "client.crt",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY": "client.key",
}


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


def secure_backend(
    pki: Pki, protocol: str, *, asks_clients: bool = False
) -> AbstractContextManager[Backend]:
    """A server with the certificate `one` of the CA; it may ask for one of the same CA."""
    if protocol == "http/protobuf":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pki.path("one.crt"), pki.path("one.key"))
        if asks_clients:
            context.load_verify_locations(pki.path("ca.crt"))
            context.verify_mode = ssl.CERT_REQUIRED
        return running_backend(context)
    pair = (pki.path("one.key").read_bytes(), pki.path("one.crt").read_bytes())
    ca = pki.path("ca.crt").read_bytes() if asks_clients else None
    return running_grpc_backend(grpc.ssl_server_credentials([pair], ca, asks_clients))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_of_the_ca_delivers_with_the_standard_variables(
    monkeypatch: pytest.MonkeyPatch, pki: Pki, tmp_path: Path, protocol: str
) -> None:
    for variable, file in OF_A_CLIENT.items():
        monkeypatch.setenv(variable, str(pki.path(file)))
    with secure_backend(pki, protocol, asks_clients=True) as backend:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", backend.endpoint)
        with configured(backend, tmp_path, endpoint=None) as configure:
            configure()
            record("api.calls", 5, tenant="tenant_a")
            deliver()

        assert backend.total("api.calls") == 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "files",
    [
        {"certificate_file": "other_ca.crt"},  # another CA than the server's
        {"certificate_file": "ca.crt"},  # no certificate of our own
        {
            "certificate_file": "ca.crt",
            "client_certificate_file": "stranger.crt",
            "client_key_file": "stranger.key",
        },
    ],
    ids=["server unknown", "client without", "client unknown"],
)
def test_who_does_not_trust_or_is_not_trusted_keeps_its_usage(
    pki: Pki, tmp_path: Path, protocol: str, files: dict[str, str]
) -> None:
    paths = {name: str(pki.path(file)) for name, file in files.items()}
    with (
        secure_backend(pki, protocol, asks_clients=True) as backend,
        configured(backend, tmp_path, protocol=protocol) as configure,
    ):
        configure(**paths)
        record("api.calls", 5, tenant="tenant_a")
        more = otel_metering.stats().failed_sends + 2
        otel_metering.flush()

        eventually(lambda: otel_metering.stats().failed_sends, more.__le__)
        assert otel_metering.stats().pending_requests == 1
        assert backend.points == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_certificate_that_is_renewed_is_used_without_a_restart(
    pki: Pki, tmp_path: Path, protocol: str
) -> None:
    for kind in ("crt", "key"):
        shutil.copy(pki.path(f"stranger.{kind}"), tmp_path / f"mine.{kind}")
    with (
        secure_backend(pki, protocol, asks_clients=True) as backend,
        configured(backend, tmp_path / "spool", protocol=protocol) as configure,
    ):
        configure(
            certificate_file=str(pki.path("ca.crt")),
            client_certificate_file=str(tmp_path / "mine.crt"),
            client_key_file=str(tmp_path / "mine.key"),
        )
        record("api.calls", 5, tenant="tenant_a")
        more = otel_metering.stats().failed_sends + 1
        otel_metering.flush()
        eventually(lambda: otel_metering.stats().failed_sends, more.__le__)

        for kind in ("crt", "key"):
            shutil.copy(pki.path(f"client.{kind}"), tmp_path / f"mine.{kind}")
        deliver()

        assert backend.total("api.calls") == 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"certificate_file": "missing"}, "certificate_file"),
        ({"certificate_file": "nonsense"}, "certificate_file"),
        ({"client_key_file": "client.key"}, "client_certificate_file"),
        ({"client_certificate_file": "client.crt"}, "client_key_file"),
        (
            {"client_certificate_file": "client.crt", "client_key_file": "one.key"},
            "client_certificate_file",
        ),
        (
            {"client_certificate_file": "one.crt", "client_key_file": "locked.key"},
            "client_key_file",
        ),
    ],
)
def test_files_that_cannot_be_used_are_named_at_once(
    pki: Pki, tmp_path: Path, protocol: str, files: dict[str, str], named: str
) -> None:
    paths = {name: str(pki.path(file)) for name, file in files.items()}

    with pytest.raises(ConfigurationError, match=named):
        otel_metering.configure(
            endpoint="https://127.0.0.1:9",
            protocol=protocol,  # type: ignore[arg-type] # one of them
            spool_dir=tmp_path,
            **paths,  # type: ignore[arg-type] # paths
        )


@pytest.mark.parametrize(
    ("insecure", "endpoint"),
    [("true", "http://collector:4317"), ("TRUE", "http://collector:4317")]
    + [(text, "https://collector:4317") for text in ("false", "1", "")],
)
def test_insecure_decides_for_grpc_endpoints_without_a_scheme(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, insecure: str, endpoint: str
) -> None:
    """OpenTelemetry specification, OTLP exporter: a boolean is true if it is "true"; default: secure."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", insecure)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")

    assert read_settings(spool_dir=tmp_path).endpoint == endpoint
    with_scheme = read_settings(spool_dir=tmp_path, endpoint="https://collector:4317")
    assert with_scheme.endpoint == "https://collector:4317"


def test_the_encoding_that_is_not_supported_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")

    with pytest.raises(ConfigurationError, match="OTEL_EXPORTER_OTLP_PROTOCOL is 'http/json'"):
        read_settings(spool_dir=tmp_path)
