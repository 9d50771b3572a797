"""Cross-origin requests: which web pages may send OTLP/HTTP, and what their browsers are told.

As rs/cors does it, which the OpenTelemetry Collector uses: a preflight is answered 204 whoever asks, and
only an origin that is allowed finds the headers that let its browser go on.
"""

import re
from collections.abc import Iterable, Mapping

Headers = list[tuple[bytes, bytes]]


class Cors:
    """The rules for origins."""

    def __init__(
        self, origins: Iterable[str], headers: Iterable[str], *, max_age_seconds: int
    ) -> None:
        """Set the rules.

        Args:
            origins: Allowed ones, https://shop.example or https://*.example; `*`: every one. None: off.
            headers: Request headers that a page may set; `*`: every one.
            max_age_seconds: How long a browser may remember the answer to a preflight; 0: its default.
        """
        origins = [origin.lower() for origin in origins]
        self.is_on = bool(origins)
        self._allows_all = "*" in origins
        patterns = [".*".join(map(re.escape, origin.split("*"))) for origin in origins]
        self._origin = re.compile("|".join(patterns))
        self._headers = frozenset(header.lower() for header in headers)
        self._max_age_seconds = max_age_seconds

    def is_preflight(self, method: str, headers: Mapping[str, str]) -> bool:
        """Whether a browser asks what a page may send."""
        return self.is_on and method == "OPTIONS" and "access-control-request-method" in headers

    def preflight(self, headers: Mapping[str, str]) -> Headers:
        """Headers of the answer to a preflight."""
        answer: Headers = [
            (
                b"vary",
                b"Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
            )
        ]
        wanted = headers.get("access-control-request-headers", "")
        names = {name.strip().lower() for name in wanted.split(",") if name.strip()}
        if (
            not self._allows(headers.get("origin", ""))
            or headers["access-control-request-method"] != "POST"
            or not ("*" in self._headers or names <= self._headers)
        ):
            return answer
        answer += self._allowed_origin(headers)
        answer.append((b"access-control-allow-methods", b"POST"))
        if names:
            answer.append((b"access-control-allow-headers", ", ".join(sorted(names)).encode()))
        if self._max_age_seconds:
            answer.append((b"access-control-max-age", str(self._max_age_seconds).encode()))
        return answer

    def response(self, headers: Mapping[str, str]) -> Headers:
        """Headers to add to any other answer."""
        if not self.is_on:
            return []
        answer: Headers = [(b"vary", b"Origin")]
        if self._allows(headers.get("origin", "")):
            answer += self._allowed_origin(headers)
            answer.append((b"access-control-expose-headers", b"Retry-After"))
        return answer

    def _allows(self, origin: str) -> bool:
        return bool(origin) and self._origin.fullmatch(origin.lower()) is not None

    def _allowed_origin(self, headers: Mapping[str, str]) -> Headers:
        origin = "*" if self._allows_all else headers["origin"]
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-credentials", b"true"),
        ]
