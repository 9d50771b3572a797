"""The query API as the commands call it; every failure becomes one sentence with a remedy."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import httpx
import typer

from otel_metering.contract.attributes import API_KEY_HEADER
from otel_metering.errors import MeteringError

DEFAULT_URL: Final = "http://127.0.0.1:8080"
TIMEOUT_SECONDS: Final = 30.0

Parameters = Sequence[tuple[str, str]]

ApiUrl = Annotated[str, typer.Option("--api-url", envvar="METERING_API_URL", help="The query API.")]
ApiKey = Annotated[
    str,
    typer.Option(
        "--api-key",
        envvar="METERING_API_KEY",
        help="A key. Better set the variable: other users of this machine see arguments.",
    ),
]


class ApiError(MeteringError):
    """The API cannot be asked, or says no."""


class Api:
    """The query API at `url`, asked with `key`."""

    def __init__(self, url: str, key: str) -> None:
        if not key:
            raise ApiError("there is no API key; set METERING_API_KEY, or give --api-key")
        self._url = url.rstrip("/")
        self._headers = {API_KEY_HEADER: key}

    def get(self, path: str, parameters: Parameters = ()) -> Mapping[str, Any]:
        """Read `path`.

        Raises:
            ApiError: It cannot be reached, or says no.
        """
        return self.request("GET", path, parameters=parameters)

    def request(
        self,
        method: str,
        path: str,
        *,
        parameters: Parameters = (),
        body: Mapping[str, object] | None = None,
    ) -> Mapping[str, Any]:
        """Send one request. Raises as `get`."""
        try:
            response = httpx.request(
                method,
                self._url + path,
                params=httpx.QueryParams(tuple(parameters)),
                json=body,
                headers=self._headers,
                timeout=TIMEOUT_SECONDS,
            )
        except (httpx.TransportError, httpx.InvalidURL, UnicodeError) as error:
            raise ApiError(
                f"{self._url} does not answer: {error}; start the service with: otel-metering up, "
                "or give its address with --api-url or METERING_API_URL"
            ) from error
        return self._answer(response)

    def _answer(self, response: httpx.Response) -> Mapping[str, Any]:
        try:
            document = response.json()
        except ValueError:
            document = None
        if not isinstance(document, dict) or (response.is_error and "detail" not in document):
            raise ApiError(
                f"{self._url} answers {response.status_code}, and not as the query API does; "
                "check --api-url"
            )
        if response.is_error:
            raise ApiError(f"{document['detail']} (HTTP {response.status_code})")
        return document
