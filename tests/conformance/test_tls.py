"""TLS of every edge (as the Collector's configtls: 1.2 and up, client certificates, reload)."""

import contextlib
import http.client
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import grpc
import pytest

import otel_metering
from otel_metering.errors import ConfigurationError
from receiver.config import Settings
from receiver.tls import from_settings
from tests.conformance.test_start import refused_start
from tests.e2e.up import KEY, Up
from tests.otlp import GRPC_METRICS
from tests.waiting import eventually

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="certificates are made with the openssl command"
)


class Pki:
    """A folder of certificates: two CAs, what they signed, and the files that the server reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for ca in ("ca", "other_ca"):
            self._openssl(
                "req",
                "-x509",
                *_new_key(folder / f"{ca}.key"),
                "-out",
                f"{ca}.crt",
                "-subj",
                f"/CN={ca}",
            )
        for ca, name in (("ca", "one"), ("ca", "two"), ("ca", "client"), ("other_ca", "stranger")):
            self._sign(ca, name)
        self._openssl("ec", "-in", "one.key", "-aes256", "-passout", "pass:x", "-out", "locked.key")
        (folder / "nonsense").write_text("nonsense")
        self.use("one")

    def path(self, name: str) -> Path:
        return self.folder / name

    def use(self, name: str) -> None:
        """Put another certificate and its key where the server reads them."""
        for kind in ("crt", "key"):
            shutil.copy(self.path(f"{name}.{kind}"), self.path(f"server.{kind}.new"))
            self.path(f"server.{kind}.new").replace(self.path(f"server.{kind}"))

    def client(self, name: str | None) -> ssl.SSLContext:
        """A client that trusts the CA, and shows the certificate of `name`."""
        context = ssl.create_default_context(cafile=str(self.path("ca.crt")))
        if name is not None:
            context.load_cert_chain(self.path(f"{name}.crt"), self.path(f"{name}.key"))
        return context

    def _sign(self, ca: str, name: str) -> None:
        self.path("san").write_text("subjectAltName=IP:127.0.0.1")
        self._openssl(
            "req", *_new_key(self.path(f"{name}.key")), "-out", "csr", "-subj", f"/CN={name}"
        )
        self._openssl(
            *("x509", "-req", "-in", "csr", "-CA", f"{ca}.crt", "-CAkey", f"{ca}.key"),
            *("-CAcreateserial", "-days", "2", "-extfile", "san", "-out", f"{name}.crt"),
        )

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(
            ["openssl", *arguments], cwd=self.folder, check=True, capture_output=True, timeout=60
        )


def _new_key(path: Path) -> tuple[str, ...]:
    return (
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-keyout",
        str(path),
    )


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Up]:
    """With TLS, and OTLP for clients of the CA only."""
    running = Up(tmp_path_factory.mktemp("secure"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METERING_TLS_CERT_FILE", str(pki.path("server.crt")))
        patch.setenv("METERING_TLS_KEY_FILE", str(pki.path("server.key")))
        patch.setenv("METERING_TLS_CLIENT_CA_FILE", str(pki.path("ca.crt")))
        running.start()
    try:
        yield running
        assert running.stop() == 0
    finally:
        if running.is_running:
            running.kill()


def https(
    address: str, context: ssl.SSLContext, method: str = "POST", path: str = "/v1/metrics"
) -> int:
    """Status of an empty request."""
    connection = http.client.HTTPSConnection(address, timeout=20, context=context)
    try:
        headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
        connection.request(method, path, b"", headers)
        return connection.getresponse().status
    finally:
        connection.close()


def grpcs(up: Up, pki: Pki, name: str | None) -> bytes:
    """The answer to an empty request."""
    credentials = grpc.ssl_channel_credentials(
        pki.path("ca.crt").read_bytes(),
        pki.path(f"{name}.key").read_bytes() if name else None,
        pki.path(f"{name}.crt").read_bytes() if name else None,
    )
    with grpc.secure_channel(up.grpc, credentials) as channel:
        export: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            GRPC_METRICS, request_serializer=None, response_deserializer=None
        )
        return export(b"", timeout=20, metadata=(("authorization", f"Bearer {KEY}"),))


def test_otlp_takes_clients_with_a_certificate_of_the_ca(secure: Up, pki: Pki) -> None:
    assert https(secure.http, pki.client("client")) == 200
    assert grpcs(secure, pki, "client") == b""


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_our_own_sdk_delivers_with_a_certificate_of_the_ca(
    secure: Up, pki: Pki, tmp_path: Path, protocol: Literal["http/protobuf", "grpc"]
) -> None:
    tenant = f"sdk.{protocol}"
    otel_metering.configure(
        service_name="shop",
        protocol=protocol,
        endpoint=f"https://{secure.grpc if protocol == 'grpc' else secure.http}",
        api_key=KEY,
        spool_dir=tmp_path,
        certificate_file=str(pki.path("ca.crt")),
        client_certificate_file=str(pki.path("client.crt")),
        client_key_file=str(pki.path("client.key")),
    )
    try:
        otel_metering.record("api.calls", 5, tenant=tenant)
        otel_metering.record("api.calls", 0.25, tenant=tenant, event_id="e1")
        assert otel_metering.flush(20, send=True)
    finally:
        otel_metering.shutdown()

    def quantities() -> list[str]:
        connection = http.client.HTTPSConnection(secure.api, timeout=20, context=pki.client(None))
        with contextlib.closing(connection):
            path = f"/v1/meter/events?meter=api.calls&tenant_id={tenant}"
            connection.request("GET", path, headers={"authorization": f"Bearer {KEY}"})
            answer = json.loads(connection.getresponse().read())
        return sorted(event["quantity"] for event in answer["data"])

    eventually(quantities, lambda found: found == ["0.25", "5"])


@pytest.mark.parametrize("name", [None, "stranger"])
def test_otlp_takes_no_other_clients(secure: Up, pki: Pki, name: str | None) -> None:
    """As the Collector's client_ca_file: the certificate is required and verified."""
    with pytest.raises(OSError, match=r"(?i)alert|reset|broken pipe|EOF|closed"):
        https(secure.http, pki.client(name))
    with pytest.raises(grpc.RpcError) as caught:
        grpcs(secure, pki, name)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_the_query_api_has_the_same_certificate_and_asks_for_none(secure: Up, pki: Pki) -> None:
    assert https(secure.api, pki.client(None), "GET", "/v1/meter/meters") == 200
    assert f"query API   https://{secure.api}" in "".join(secure.printed)
    assert f"OTLP/HTTP   https://{secure.http}" in "".join(secure.printed)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_versions_below_tls_1_2_are_refused(secure: Up, pki: Pki) -> None:
    for address in (secure.grpc, secure.http, secure.api):
        context = pki.client("client")
        context.set_ciphers("DEFAULT@SECLEVEL=0")  # or the client itself would not speak 1.1
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|EOF"):
            _handshake(address, context)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert _handshake(address, context)[0] == "TLSv1.2"


def _handshake(address: str, context: ssl.SSLContext) -> tuple[str | None, str]:
    """Version of TLS, and the subject of the certificate."""
    context.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = address.partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=host) as encrypted,
    ):
        shown = encrypted.getpeercert()
        assert shown is not None
        return encrypted.version(), str(shown["subject"])


def _names(up: Up, pki: Pki) -> set[str]:
    """Subjects of the certificates that the edges show."""
    context = pki.client("client")
    return {_handshake(address, context)[1] for address in (up.grpc, up.http, up.api)}


def _subject(name: str) -> str:
    return str(((("commonName", name),),))


def test_a_certificate_that_changes_is_read_again_and_a_broken_one_is_not_used(
    secure: Up, pki: Pki
) -> None:
    pki.use("one")
    eventually(lambda: _names(secure, pki), lambda names: names == {_subject("one")})

    pki.use("two")
    eventually(lambda: _names(secure, pki), lambda names: names == {_subject("two")})
    pki.path("server.crt").write_text("nonsense")
    eventually(
        lambda: "".join(secure.printed), lambda printed: "TLS files cannot be used" in printed
    )
    assert _names(secure, pki) == {_subject("two")}
    assert https(secure.http, pki.client("client")) == 200

    pki.use("one")
    eventually(lambda: _names(secure, pki), lambda names: names == {_subject("one")})


CERT, KEY_FILE, CA = (
    "METERING_TLS_CERT_FILE",
    "METERING_TLS_KEY_FILE",
    "METERING_TLS_CLIENT_CA_FILE",
)


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({CERT: "one.crt"}, KEY_FILE),
        ({KEY_FILE: "one.key"}, CERT),
        ({CA: "ca.crt"}, CERT),
        ({CERT: "missing", KEY_FILE: "one.key"}, CERT),
        ({CERT: "nonsense", KEY_FILE: "one.key"}, CERT),
        ({CERT: "one.crt", KEY_FILE: "missing"}, KEY_FILE),
        ({CERT: "one.crt", KEY_FILE: "two.key"}, KEY_FILE),
        ({CERT: "one.crt", KEY_FILE: "locked.key"}, KEY_FILE),
        ({CERT: "one.crt", KEY_FILE: "one.key", CA: "nonsense"}, CA),
        ({CERT: "one.crt", KEY_FILE: "one.key", CA: "missing"}, CA),
    ],
)
def test_files_that_cannot_be_used_stop_the_start_and_the_setting_is_named(
    pki: Pki, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], named: str
) -> None:
    for name, file in files.items():
        monkeypatch.setenv(name, str(pki.path(file)))

    with pytest.raises(ConfigurationError, match=named):
        from_settings(Settings())


def test_a_start_with_half_a_configuration_ends_with_the_reason(
    new_up: Up, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CERT, str(pki.path("one.crt")))

    assert f"{CERT} needs {KEY_FILE}; set it too" in refused_start(new_up)
