"""How the commands reach the query API: options, and a client with the patience of a person."""

from typing import Annotated, Final

import typer

from otel_metering.client import MeteringClient

MAX_RETRIES: Final = 2
"""Somebody waits in front of the terminal."""

ApiUrl = Annotated[
    str,
    typer.Option(
        "--api-url",
        envvar="METERING_API_URL",
        help="The query API.",
        show_default="http://127.0.0.1:8080",
    ),
]
ApiKey = Annotated[
    str,
    typer.Option(
        "--api-key",
        envvar="METERING_API_KEY",
        help="A key. Better set the variable: other users of this machine see arguments.",
    ),
]


def connect(url: str, key: str) -> MeteringClient:
    """A client; empty text: as in its settings.

    Raises:
        ConfigurationError: There is no key, or the URL is none.
    """
    return MeteringClient(url or None, key or None, max_retries=MAX_RETRIES)
