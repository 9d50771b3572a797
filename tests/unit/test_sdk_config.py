from pathlib import Path

import pytest

from otel_metering._config import read_settings
from otel_metering.errors import ConfigurationError


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith(("METERING_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_the_defaults_work_on_a_laptop(tmp_path: Path) -> None:
    settings = read_settings()

    assert settings.endpoint == "http://localhost:4318"
    assert settings.flush_interval_seconds == 1.0
    assert settings.spool_dir == tmp_path / "otel-metering" / "spool"


def test_an_argument_beats_metering_beats_otel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:1/")
    assert read_settings().endpoint == "http://otel:1"

    monkeypatch.setenv("METERING_ENDPOINT", "http://metering:2")
    assert read_settings().endpoint == "http://metering:2"

    assert read_settings(endpoint="http://argument:3").endpoint == "http://argument:3"


def test_the_resource_is_that_of_opentelemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")

    assert read_settings().service_name == "shop"
    assert read_settings().resource["deployment.environment.name"] == "test"
    assert read_settings(service_name="cart").resource["service.name"] == "cart"


def test_the_key_becomes_a_header_and_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-zone=a%20b")
    monkeypatch.setenv("METERING_API_KEY", "secret_1")

    settings = read_settings()

    assert settings.headers == {"x-zone": "a b", "authorization": "Bearer secret_1"}
    assert "secret_1" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("METERING_BATCH_INTERVAL_SECONDS", "soon"),
        ("METERING_BATCH_INTERVAL_SECONDS", "0"),
        ("METERING_BATCH_INTERVAL_SECONDS", "inf"),
        ("METERING_BATCH_SIZE", "1.5"),
        ("METERING_DURABILITY", "high"),
        ("METERING_TRANSPORT_MODE", "pigeon"),
        ("METERING_ENDPOINT", "localhost:4318"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://host:port"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "br"),
    ],
)
def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError, match=name):
        read_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("service_name", ""),
        ("batch_size", 0),
        ("timeout_seconds", -1.0),
        ("compression", "zip"),
        ("headers", {"x-key": "a\nb"}),
        ("headers", 3),
        ("spool_dir", 3),
        ("api_key", ""),
    ],
)
def test_a_bad_argument_is_named(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=name):
        read_settings(**{name: value})


def test_a_state_folder_that_cannot_be_made_is_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    spool_dir = read_settings().spool_dir

    assert spool_dir.parent == tmp_path
    assert spool_dir.stat().st_mode & 0o777 == 0o700


def test_a_protocol_of_the_traces_endpoint_is_not_spoken_to_another_endpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # opentelemetry-distro sets it where nobody did.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert read_settings().protocol == "grpc"
    assert read_settings(endpoint="http://metering:1").protocol == "http/protobuf"

    monkeypatch.setenv("METERING_ENDPOINT", "http://metering:2")
    assert read_settings().protocol == "http/protobuf"
    assert read_settings(protocol="grpc").protocol == "grpc"

    monkeypatch.setenv("METERING_PROTOCOL", "grpc")
    assert read_settings().protocol == "grpc"


def test_the_protocol_of_the_endpoint_that_both_use_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://otel:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")

    assert read_settings().protocol == "grpc"
