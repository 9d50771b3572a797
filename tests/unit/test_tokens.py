"""Read tokens: only what was signed, only as long as it and its key last."""

import base64
import string
from dataclasses import replace
from datetime import UTC, datetime
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from query_api.tokens import authenticate_token, make_token
from receiver.store.api_key import ApiKey, hash_key
from receiver.store.keys import ApiKeys, Principal, Scope

SECOND = 1_000_000_000
END = 1_800_000_000
NOW_NS = (END - 60) * SECOND
KEY = ApiKey(
    key_id="maker",
    name="test",
    scopes=(Scope.QUERY,),
    tenant_id=None,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
    expires_at=None,
    revoked_at=None,
    key_hash=hash_key("otm_maker_" + "0" * 32),
)
TOKEN = make_token(KEY, tenant_id="tenant_a", meters=["api.calls"], expires_at_seconds=END)
BASE64URL = string.ascii_letters + string.digits + "-_"


class Keys:
    """Some keys that work now."""

    def __init__(self, *keys: ApiKey) -> None:
        self._keys = {key.key_id: key for key in keys}

    def active(self, key_id: str) -> ApiKey | None:
        return self._keys.get(key_id)


def ask(token: str, *keys: ApiKey, now_ns: int = NOW_NS) -> Principal | None:
    return authenticate_token(token, cast(ApiKeys, Keys(*keys)), now_ns=now_ns)


def test_a_token_reads_its_tenant_and_meters_and_nothing_else() -> None:
    assert ask(TOKEN, KEY) == Principal(
        key_id="maker",
        scopes=frozenset({Scope.QUERY}),
        tenant_id="tenant_a",
        meters=frozenset({"api.calls"}),
        is_token=True,
    )


def test_a_token_without_meters_reads_all_of_its_tenant() -> None:
    token = make_token(KEY, tenant_id="tenant_a", meters=None, expires_at_seconds=END)

    principal = ask(token, KEY)

    assert principal is not None
    assert principal.meters is None


def test_a_token_ends_with_its_second() -> None:
    assert ask(TOKEN, KEY, now_ns=END * SECOND - 1) is not None
    assert ask(TOKEN, KEY, now_ns=END * SECOND) is None


@pytest.mark.parametrize(
    "keys",
    [
        (),
        (replace(KEY, key_hash=hash_key("another")),),
        (replace(KEY, scopes=(Scope.INGEST, Scope.VALIDATE)),),
        (replace(KEY, tenant_id="tenant_b"),),
    ],
    ids=["the key does not work", "another secret", "no reader", "bound to another tenant"],
)
def test_a_token_is_worth_what_its_key_is_worth_now(keys: tuple[ApiKey, ...]) -> None:
    assert ask(TOKEN, *keys) is None


@given(st.data())
def test_no_character_of_a_token_can_be_replaced(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(TOKEN) - 1))
    other = data.draw(st.sampled_from(BASE64URL + "._=+/ \n") | st.characters(max_codepoint=255))
    tampered = TOKEN[:place] + other + TOKEN[place + 1 :]

    assert (ask(tampered, KEY) is not None) == (tampered == TOKEN)


@given(st.data())
def test_no_piece_of_a_token_can_be_cut_out_or_put_in(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(TOKEN)))
    end = data.draw(st.integers(start, len(TOKEN)))
    tampered = TOKEN[:start] + data.draw(st.text(BASE64URL + ".=\n", max_size=8)) + TOKEN[end:]

    assert (ask(tampered, KEY) is not None) == (tampered == TOKEN)


@given(st.binary(max_size=400), st.text(BASE64URL, max_size=60))
def test_whatever_is_signed_by_nobody_is_no_token(payload: bytes, signature: str) -> None:
    for raw in (payload, b"1\nmaker\n" + payload, b"1\nmaker\n9999999999\ntenant_a\n" + payload):
        text = base64.urlsafe_b64encode(raw).decode().rstrip("=")
        assert ask(f"ott_{text}.{signature}", KEY) is None
        assert ask(f"ott_{text}", KEY) is None


@given(st.text(max_size=100))
def test_any_text_can_be_asked_about(text: str) -> None:
    assert ask(text.encode("utf-8", "replace").decode(), KEY) is None
    assert ask("ott_" + text.encode("utf-8", "replace").decode(), KEY) is None


def test_the_signature_of_another_key_signs_nothing_for_this_one() -> None:
    other = replace(KEY, key_id="other", key_hash=hash_key("other"))
    signed, _, _ = TOKEN.partition(".")
    _, _, signature = make_token(
        other, tenant_id="tenant_a", meters=["api.calls"], expires_at_seconds=END
    ).partition(".")

    assert ask(f"{signed}.{signature}", KEY, other) is None


def test_the_hash_of_the_key_is_not_in_the_token() -> None:
    payload = TOKEN.removeprefix("ott_").partition(".")[0]
    text = base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)).decode()

    assert text.split("\n") == ["1", "maker", str(END), "tenant_a", "api.calls"]
