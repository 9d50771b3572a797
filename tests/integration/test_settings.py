"""Where the settings of the services come from: an option, else a variable, else a secret file, else the default."""

from pathlib import Path

import pytest

from otel_metering.errors import ConfigurationError
from query_api import config
from receiver.config import Settings

URL = "clickhouse://receiver:s3cret@db:8123/metering"


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("METERING_CLICKHOUSE_URL", "METERING_ADMIN_KEY", "METERING_REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("METERING_SECRETS_DIR", str(tmp_path))
    return tmp_path


def test_a_file_is_a_setting_without_the_newline_at_its_end(secrets: Path) -> None:
    (secrets / "metering_clickhouse_url").write_text(f"{URL}\n")
    (secrets / "metering_admin_key").write_text("otm_a_b\r\n")
    (secrets / "metering_redis_url").write_text("redis://:p@cache")
    (secrets / "metering_clickhouse_admin_password").write_text("of the administrator\n")
    (secrets / "something_else").write_text("of another service")

    settings, api_settings = Settings(), config.Settings()

    assert settings.clickhouse_url == URL
    assert settings.admin_key is not None
    assert settings.admin_key.get_secret_value() == "otm_a_b"
    assert api_settings.redis_url is not None
    assert api_settings.redis_url.get_secret_value() == "redis://:p@cache"
    password = api_settings.clickhouse_admin_password
    assert password is not None
    assert password.get_secret_value() == "of the administrator"


def test_a_mounted_secret_is_a_link_to_a_link(secrets: Path) -> None:
    # As Kubernetes mounts them.
    (secrets / "..2026_01_01").mkdir()
    (secrets / "..2026_01_01" / "metering_clickhouse_url").write_text(URL)
    (secrets / "..data").symlink_to("..2026_01_01")
    (secrets / "metering_clickhouse_url").symlink_to("..data/metering_clickhouse_url")

    assert Settings().clickhouse_url == URL


def test_an_option_beats_a_variable_and_that_a_file(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (secrets / "metering_api_port").write_text("1\n")
    assert config.Settings().api_port == 1

    monkeypatch.setenv("METERING_API_PORT", "2")
    assert config.Settings().api_port == 2
    assert config.Settings(api_port=3).api_port == 3


def test_a_directory_that_is_not_there_is_named(
    secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METERING_SECRETS_DIR", str(secrets / "missing"))

    for settings in (Settings, config.Settings):
        with pytest.raises(ConfigurationError, match=r"METERING_SECRETS_DIR is .*missing"):
            settings()


def test_a_file_that_cannot_be_read_is_an_error_without_its_text(secrets: Path) -> None:
    (secrets / "metering_admin_key").write_bytes(b"otm_a_\xff\xfe")

    with pytest.raises(ConfigurationError, match="METERING_SECRETS_DIR"):
        Settings()


def test_the_receiver_leaves_the_port_of_the_api_to_the_api(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("METERING_API_PORT", raising=False)
    assert (config.Settings().api_port, config.ReceiverSettings().api_port) == (8080, 8081)
    assert config.Settings().receiver_url == "http://127.0.0.1:8081"

    monkeypatch.setenv("METERING_API_PORT", "9000")
    assert config.ReceiverSettings().api_port == 9000
