"""Writes docs/settings.md from the settings classes: `python docs/_settings.py`. A test compares."""

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic_settings import BaseSettings

from otel_metering import _config as sdk
from otel_metering import _instrumentation_config as instrumentation
from query_api import config as api
from receiver import config as receiver

PAGE = Path(__file__).with_name("settings.md")


def page() -> str:
    """The whole page."""
    lines = [
        "# Settings",
        "",
        "Made by `python docs/_settings.py`; a test fails when it differs from the code.",
        "",
        "## Services (`otel-metering up`, `receiver`, `api`)",
        "",
        "An option of the command beats the variable, and the variable beats the default. Between variable and "
        "default come files: `METERING_SECRETS_DIR` names a directory (`/run/secrets`) with files named like a "
        "variable in lower case (`metering_clickhouse_url`); white space around their text is no part of it.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for settings in (receiver.Settings, api.Settings):
        lines += _service_rows(settings)
    lines += [
        "",
        "## SDK (`otel_metering.configure`)",
        "",
        "An argument beats the first variable that is set, and a variable beats the default.",
        "",
        "| argument | variables | meaning |",
        "|---|---|---|",
    ]
    lines += _sdk_rows(sdk._VARIABLES, _described_attributes(sdk.Settings))
    lines += [
        "",
        "## Without code (`opentelemetry-instrument`)",
        "",
        "Beside the variables of the SDK; see [OpenTelemetry](opentelemetry.md).",
        "",
        "| setting | variable | meaning |",
        "|---|---|---|",
    ]
    lines += _sdk_rows(
        instrumentation._VARIABLES,
        _described_attributes(instrumentation.InstrumentationSettings),
    )
    lines += [
        "",
        "## Client (`otel_metering.MeteringClient`, and the commands)",
        "",
        "An argument beats the variable, and the variable beats the default.",
        "",
        "| argument | variables | meaning |",
        "|---|---|---|",
    ]
    lines += _sdk_rows(sdk._CLIENT_VARIABLES, _described_attributes(sdk.ClientSettings))
    return "\n".join(lines) + "\n"


def _service_rows(settings: type[BaseSettings]) -> list[str]:
    prefix = settings.model_config["env_prefix"]
    rows = []
    for name, field in settings.model_fields.items():
        default = "" if field.default in (None, "") else f"`{field.default}`"
        rows.append(f"| `{prefix}{name.upper()}` | {default} | {field.description} |")
    return rows


def _sdk_rows(table: Mapping[str, tuple[str, ...]], described: Mapping[str, str]) -> Iterator[str]:
    for name, variables in table.items():
        shown = ", ".join(f"`{variable}`" for variable in variables)
        yield f"| `{name}` | {shown} | {described.get(name, '')} |"


def _described_attributes(settings: type) -> dict[str, str]:
    described = {
        "api_key": "The API key; sent as `Authorization: Bearer`.",
        "insecure": "Variable only: `true` for no TLS where a gRPC endpoint has no `http://` or `https://`.",
    }
    documented = inspect.getdoc(settings) or ""
    section = inspect.cleandoc(documented.partition("Attributes:")[2])
    for entry in re.split(r"\n(?! )", section):
        name, separator, text = entry.partition(": ")
        if separator:
            described.setdefault(name, " ".join(text.split()))
    return described


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
