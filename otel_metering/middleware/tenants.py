"""Where a request says whose it is: give one of these as `tenant` to a middleware, or several.

A source is any function of a `Request` that returns the tenant id, or None if it finds none. What it
returns is checked: text that cannot be a tenant id is ignored, and counted in `stats().ignored_tenants`.

Baggage is no source: whoever calls can put anything into it.
"""

import base64
import json
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from otel_metering._guard import Problem, problems
from otel_metering.errors import ConfigurationError
from otel_metering.middleware._request import Request

__all__ = ["Request", "Source", "first", "header", "jwt_claim", "path", "subdomain"]

Source = Callable[[Request], str | None]
"""Says the tenant of a request, None if it does not know. May have an attribute `is_blocking`: if it is
true, servers with an event loop call the source in a thread."""

_SEGMENT: Final = "[^/]+"


def header(name: str) -> Source:
    """The tenant is what the header `name` says.

    It is as trustworthy as whoever may send it: use it behind a gateway that sets it.
    """

    def tenant(request: Request) -> str | None:
        return request.header(name)

    return tenant


def path(template: str) -> Source:
    """The tenant is in the path, e.g. `path("/t/{tenant}")`; whatever follows may follow.

    Args:
        template: Starts with a slash. Segments in braces stand for any text; one is `{tenant}`.

    Raises:
        ConfigurationError: There is not exactly one `{tenant}`.
    """
    segments = template.rstrip("/").split("/")
    if segments.count("{tenant}") != 1 or segments[0]:
        raise ConfigurationError(
            f"the path template is {template!r}; it must start with / and have one segment {{tenant}}"
        )
    pattern = re.compile("/".join(map(_pattern, segments)) + "(?:/.*)?", re.DOTALL)

    def tenant(request: Request) -> str | None:
        found = pattern.fullmatch(request.path)
        return None if found is None else found["tenant"]

    return tenant


def _pattern(segment: str) -> str:
    if segment == "{tenant}":
        return f"(?P<tenant>{_SEGMENT})"
    return _SEGMENT if re.fullmatch(r"\{.*\}", segment) else re.escape(segment)


def subdomain(domain: str, *, ignore: Collection[str] = ("www",)) -> Source:
    """The tenant is the one label before `domain`: of acme.example.com, with example.com, acme.

    Args:
        domain: What all tenants have in common.
        ignore: Labels that are no tenants.
    """
    suffix = "." + domain.strip(".").lower()

    def tenant(request: Request) -> str | None:
        host = request.host
        label = host.removesuffix(suffix)
        return None if label == host or not label or "." in label or label in ignore else label

    return tenant


def first(*sources: Source) -> Source:
    """The tenant is what the first of `sources` says that says anything."""

    def tenant(request: Request) -> str | None:
        for source in sources:
            found = source(request)
            if found is not None:
                return found
        return None

    tenant.is_blocking = any(is_blocking(source) for source in sources)  # type: ignore[attr-defined] # part of Source
    return tenant


def jwt_claim(
    claim: str,
    *,
    key: str | bytes | None = None,
    jwks_url: str | None = None,
    algorithms: Sequence[str] = (),
    audience: str | Sequence[str] | None = None,
    issuer: str | Sequence[str] | None = None,
    header: str = "authorization",
    verify: bool = True,
) -> Source:
    """The tenant is a claim of the request's JSON Web Token.

    A token that is not valid, e.g. expired, signed by somebody else or not at all, names no tenant, and is
    counted in `stats().ignored_tenants`. Verifying needs the extra `otel-metering[jwt]`.

    Args:
        claim: Its name, at the top of the token, e.g. "tenant_id"; its value is text or an integer.
        key: The secret (HS...), or the public key in PEM.
        jwks_url: Where the public keys are instead; they are read when a token needs one, and kept.
        algorithms: Which signatures count, e.g. ["RS256"]; the token itself never decides that.
        audience: One of these must be in the token's `aud`. A token with `aud` needs it.
        issuer: One of these must be the token's `iss`.
        header: Which holds the token, after "Bearer" or alone.
        verify: False reads the token as it is: only where a gateway has verified it, and nobody else
            can reach this service.

    Raises:
        ConfigurationError: It is not said what to verify with, or PyJWT is missing.
    """
    decode: Callable[[str], dict[str, Any]] = _payload_of
    if verify:
        _check_keys(key, jwks_url, algorithms)
        try:
            from otel_metering.middleware._jwt import verifier  # noqa: PLC0415 -- needs an extra
        except ImportError as error:
            raise ConfigurationError("jwt_claim needs PyJWT; install otel-metering[jwt]") from error
        decode = verifier(key, jwks_url, algorithms=algorithms, audience=audience, issuer=issuer)

    def tenant(request: Request) -> str | None:
        token = _token_of(request.header(header), is_bare=header.lower() != "authorization")
        if token is None:
            return None
        try:
            value = decode(token).get(claim)
        except ValueError as error:
            # Not the token: it may be one that is valid elsewhere.
            problems.report(Problem.IGNORED_TENANTS, f"a request's token is not valid: {error}")
            return None
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return str(value) if is_number or isinstance(value, str) else None

    tenant.is_blocking = verify and jwks_url is not None  # type: ignore[attr-defined] # part of Source
    return tenant


def is_blocking(source: Source) -> bool:
    """Whether `source` may wait for the network."""
    return bool(getattr(source, "is_blocking", False))


def _check_keys(key: object, jwks_url: object, algorithms: Sequence[str]) -> None:
    if (key is None) == (jwks_url is None):
        raise ConfigurationError(
            "jwt_claim: give key or jwks_url, or verify=False behind a gateway"
        )
    if not algorithms or isinstance(algorithms, str) or "none" in map(str.lower, algorithms):
        raise ConfigurationError(
            f"jwt_claim: algorithms is {algorithms!r}; list the signatures that count, such as ['RS256']"
        )


def _payload_of(token: str) -> dict[str, Any]:
    """The claims of a token that somebody else has verified.

    Raises:
        ValueError: It is no token.
    """
    parts = token.split(".")
    if len(parts) != 3:
        raise ValueError("not three parts")
    claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    if not isinstance(claims, dict):
        raise ValueError("the payload is no object")  # noqa: TRY004 -- wrong data, not a wrong call
    return claims


def _token_of(value: str | None, *, is_bare: bool) -> str | None:
    scheme, _, token = (value or "").strip().partition(" ")
    if scheme.lower() == "bearer":
        return token.strip() or None
    return scheme if is_bare and scheme and not token else None
