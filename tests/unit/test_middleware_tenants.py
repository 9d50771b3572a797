import base64
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

import otel_metering
from otel_metering.errors import ConfigurationError
from otel_metering.middleware._request import EnvironRequest
from otel_metering.middleware.asgi import AsgiRequest
from otel_metering.middleware.tenants import (
    Request,
    first,
    header,
    jwt_claim,
    path,
    subdomain,
)

SECRET = "a secret of sixty-four bytes and more, as RFC 7518 asks for a hash of 512 bits"
OTHER_SECRET = SECRET.replace("a secret", "another one")


def asgi(path: str = "/", **headers: str) -> Request:
    pairs = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    return AsgiRequest({"type": "http", "method": "GET", "path": path, "headers": pairs})


def wsgi(path: str = "/", **headers: str) -> Request:
    named = {f"HTTP_{name.upper()}": text for name, text in headers.items()}
    shown = path.encode().decode("latin-1")
    return EnvironRequest({"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": shown, **named})


@pytest.fixture(params=[asgi, wsgi])
def made(request: pytest.FixtureRequest) -> Any:
    """Makes a request of ASGI, then of WSGI: the sources see the same."""
    return request.param


def test_a_header_is_found_by_its_name_in_any_case(made: Any) -> None:
    assert header("X-Tenant-Id")(made(x_tenant_id="acme")) == "acme"
    assert header("x-tenant-id")(made(x_tenant="acme")) is None


def test_a_header_that_was_sent_twice_names_nobody() -> None:
    twice = [(b"x-tenant-id", b"mine"), (b"x-tenant-id", b"yours")]

    found = header("x-tenant-id")(AsgiRequest({"headers": twice}))

    # RFC 9110, 5.3; a comma is not part of any tenant id.
    assert found == "mine,yours"


@pytest.mark.parametrize(
    ("template", "asked", "tenant"),
    [
        ("/t/{tenant}", "/t/acme", "acme"),
        ("/t/{tenant}", "/t/acme/orders/7", "acme"),
        ("/t/{tenant}/", "/t/acme", "acme"),
        ("/t/{tenant}", "/t/", None),
        ("/t/{tenant}", "/t", None),
        ("/t/{tenant}", "/x/t/acme", None),
        ("/{region}/{tenant}", "/eu/acme/x", "acme"),
        ("/a.b/{tenant}", "/aXb/acme", None),
        ("/{tenant}", "/ümlaut", "ümlaut"),
    ],
)
def test_a_segment_of_the_path_is_the_tenant(
    made: Any, template: str, asked: str, tenant: str | None
) -> None:
    assert path(template)(made(asked)) == tenant


@pytest.mark.parametrize("template", ["/t/{id}", "t/{tenant}", "/{tenant}/{tenant}", "/x{tenant}"])
def test_a_template_without_exactly_one_tenant_is_refused(template: str) -> None:
    with pytest.raises(ConfigurationError, match="one segment"):
        path(template)


@pytest.mark.parametrize(
    ("host", "tenant"),
    [
        ("acme.example.com", "acme"),
        ("ACME.Example.com:8443", "acme"),
        ("acme.example.com.", "acme"),
        ("example.com", None),
        ("a.b.example.com", None),
        ("www.example.com", None),
        ("acme.example.org", None),
        ("acmeexample.com", None),
        ("[::1]:80", None),
        ("", None),
    ],
)
def test_the_label_before_the_domain_is_the_tenant(
    made: Any, host: str, tenant: str | None
) -> None:
    assert subdomain("example.com")(made(host=host)) == tenant


def test_the_first_source_that_knows_decides(made: Any) -> None:
    source = first(header("x-a"), lambda _: None, header("x-b"))

    assert source(made(x_a="one", x_b="two")) == "one"
    assert source(made(x_b="two")) == "two"
    assert source(made()) is None


@pytest.fixture
def ignored() -> Any:
    """How many tenants were ignored since the test began."""
    before = otel_metering.stats().ignored_tenants
    return lambda: otel_metering.stats().ignored_tenants - before


def bearer(token: str) -> str:
    return f"Bearer {token}"


def test_a_token_of_our_secret_names_the_tenant(made: Any, ignored: Any) -> None:
    source = jwt_claim("tenant_id", key=SECRET, algorithms=["HS256"])
    token = jwt.encode({"tenant_id": "acme", "exp": time.time() + 60}, SECRET, "HS256")

    assert source(made(authorization=bearer(token))) == "acme"
    assert source(made(authorization=f"bearer  {token}")) == "acme"
    assert source(made()) is None
    assert source(made(authorization="Basic YTpi")) is None
    assert ignored() == 0


@pytest.fixture(scope="module")
def private_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def test_a_token_of_our_private_key_names_the_tenant(
    made: Any, ignored: Any, private_key: rsa.RSAPrivateKey
) -> None:
    source = jwt_claim("org", key=public_pem(private_key), algorithms=["RS256"])
    token = jwt.encode({"org": 42}, private_key, "RS256")
    body, signature = token.rsplit(".", 1)

    assert source(made(authorization=bearer(token))) == "42"
    assert ignored() == 0
    assert source(made(authorization=bearer(f"{body}.{signature[::-1]}"))) is None
    assert ignored() == 1


def unsigned(claims: dict[str, object]) -> str:
    parts = [{"alg": "none", "typ": "JWT"}, claims]
    coded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts]
    return b".".join([*coded, b""]).decode()


CLAIMS: dict[str, object] = {"tenant_id": "acme"}
BAD_TOKENS = {
    "signed by somebody else": jwt.encode(CLAIMS, OTHER_SECRET, "HS256"),
    "signed in another way": jwt.encode(CLAIMS, SECRET, "HS512"),
    "not signed (RFC 8725, 3.2)": unsigned(CLAIMS),
    "expired": jwt.encode({**CLAIMS, "exp": 1_000_000_000}, SECRET, "HS256"),
    "not valid yet": jwt.encode({**CLAIMS, "nbf": time.time() + 3600}, SECRET, "HS256"),
    "for somebody else": jwt.encode({**CLAIMS, "aud": "other"}, SECRET, "HS256"),
    "no token": "abc",
    "not even text": "\x00.\xff.é",
}


@pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS.keys())
def test_a_token_that_is_not_valid_names_nobody_and_is_counted(
    made: Any, ignored: Any, token: str
) -> None:
    source = jwt_claim("tenant_id", key=SECRET, algorithms=["HS256"])

    assert source(made(authorization=bearer(token))) is None
    assert ignored() == 1


def test_a_public_key_is_no_secret(private_key: rsa.RSAPrivateKey, ignored: Any) -> None:
    # RFC 8725, 2.1: a token whose HMAC was made with the public key, which everybody has.
    pem = public_pem(private_key)
    source = jwt_claim("tenant_id", key=pem, algorithms=["RS256", "HS256"])
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
    body = base64.urlsafe_b64encode(json.dumps(CLAIMS).encode()).rstrip(b"=")
    import hmac

    signature = hmac.digest(pem, head + b"." + body, "sha256")
    token = b".".join([head, body, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()

    assert source(asgi(authorization=bearer(token))) is None
    assert ignored() == 1


def test_audience_and_issuer_are_asked_for(ignored: Any) -> None:
    source = jwt_claim(
        "tenant_id", key=SECRET, algorithms=["HS256"], audience="shop", issuer="https://id"
    )
    good = {**CLAIMS, "aud": ["shop", "x"], "iss": "https://id"}
    for claims in ({**good, "aud": "x"}, {**good, "iss": "https://evil"}, CLAIMS):
        assert source(asgi(authorization=bearer(jwt.encode(claims, SECRET, "HS256")))) is None

    assert ignored() == 3
    assert source(asgi(authorization=bearer(jwt.encode(good, SECRET, "HS256")))) == "acme"


@pytest.mark.parametrize(
    "claims", [{}, {"tenant_id": None}, {"tenant_id": True}, {"tenant_id": ["a"]}]
)
def test_a_claim_that_is_no_name_names_nobody(claims: dict[str, object]) -> None:
    source = jwt_claim("tenant_id", key=SECRET, algorithms=["HS256"])

    assert source(asgi(authorization=bearer(jwt.encode(claims, SECRET, "HS256")))) is None


def test_behind_a_gateway_a_token_is_read_as_it_is(ignored: Any) -> None:
    source = jwt_claim("tenant_id", header="x-verified-token", verify=False)

    assert source(asgi(x_verified_token=jwt.encode(CLAIMS, OTHER_SECRET, "HS256"))) == "acme"
    assert source(asgi(x_verified_token=bearer(unsigned(CLAIMS)))) == "acme"
    assert source(asgi(authorization=bearer(unsigned(CLAIMS)))) is None
    assert ignored() == 0
    for broken in ("a.b", "a.!!!.c", "a." + base64.b64encode(b"[1]").decode() + ".c"):
        assert source(asgi(x_verified_token=broken)) is None
    assert ignored() == 3


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "key or jwks_url"),
        ({"key": "k", "jwks_url": "http://x", "algorithms": ["RS256"]}, "key or jwks_url"),
        ({"key": "k"}, "algorithms"),
        ({"key": "k", "algorithms": "HS256"}, "algorithms"),
        ({"key": "k", "algorithms": ["HS256", "None"]}, "algorithms"),
    ],
)
def test_a_claim_that_cannot_be_verified_is_refused(
    arguments: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        jwt_claim("tenant_id", **arguments)
