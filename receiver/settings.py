"""Where settings of the services come from: arguments, `METERING_*`, then files of `METERING_SECRETS_DIR`."""

import os
from pathlib import Path
from typing import Any, Final

from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from otel_metering.errors import ConfigurationError

SECRETS_DIR: Final = "METERING_SECRETS_DIR"


class ServiceSettings(BaseSettings):
    """What every class of settings shares; frozen, and read once.

    Each setting may also be a file named like its variable in lower case, as Docker and Kubernetes mount secrets:
    `/run/secrets/metering_clickhouse_url`. White space around its text is no part of it.
    """

    model_config = SettingsConfigDict(env_prefix="METERING_", frozen=True, extra="ignore")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The first that has a setting has it.

        Raises:
            ConfigurationError: There is no such directory.
        """
        named = os.environ.get(SECRETS_DIR)  # noqa: TID251 - says where the other settings are
        if not named:
            return init_settings, env_settings
        if not Path(named).is_dir():
            raise ConfigurationError(
                f"{SECRETS_DIR} is {named!r}, which is no directory; mount the secrets there, or unset it"
            )
        return init_settings, env_settings, _SecretFiles(settings_cls, named)


class _SecretFiles(SecretsSettingsSource):
    def __call__(self) -> dict[str, Any]:
        """The settings that have a file.

        Raises:
            ConfigurationError: One cannot be read.
        """
        try:
            return super().__call__()
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"a file of {SECRETS_DIR} cannot be read: {error}") from error
