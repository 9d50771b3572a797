"""JSON becomes checks of quotas: written by hand, because every request of a customer may wait for it."""

import json
import re
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import Any, Final

from otel_metering.contract.event import MAX_QUANTITY, check_quantity, is_valid_name
from otel_metering.contract.quota import MAX_FILTER_LENGTH, MAX_FILTER_NAMES
from otel_metering.errors import InvalidUsageError
from query_api.counters import Pairs
from query_api.problems import ForbiddenError, TooLargeError
from query_api.quotas import NANO, to_nano
from query_api.verdicts import Question
from receiver.store.key_counts import Refused

MAX_CHECKS: Final = 1_000
"""Checks of one request."""

MAX_TTL_SECONDS: Final = 86_400
DEFAULT_TTL_SECONDS: Final = 60
MAX_ID_LENGTH: Final = 128
_MAX_NUMBER: Final = 64

_FIELDS: Final = frozenset(
    {
        "tenant_id",
        "meter",
        "quantity",
        "dimensions",
        "reserve",
        "lease",
        "ttl_seconds",
        "reservation_id",
    }
)
_ID: Final = re.compile(rf"[A-Za-z0-9_.:@-]{{1,{MAX_ID_LENGTH}}}")
_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,2})?", re.ASCII)


def parse_checks(body: bytes, bound_tenant_id: str | None) -> tuple[list[Question], bool]:
    """Read one check, or a list of them; returns them, and whether it was a list.

    Args:
        body: JSON.
        bound_tenant_id: The only tenant that the key may ask about; None: each check names its own.

    Raises:
        InvalidUsageError: Names the field, its value, the limit and the remedy.
        ForbiddenError: The key is bound to another tenant.
        TooLargeError: The list is too long.
    """
    document = load(body)
    if isinstance(document, dict):
        return [_question(document, bound_tenant_id)], False
    if not isinstance(document, list):
        raise InvalidUsageError("the body is neither an object nor a list; send one check, or many")
    if len(document) > MAX_CHECKS:
        raise TooLargeError(
            f"the list has {len(document)} checks; the limit is {MAX_CHECKS}; send several requests"
        )
    questions = []
    for i, item in enumerate(document):
        try:
            questions.append(_question(item, bound_tenant_id))
        except InvalidUsageError as error:
            raise InvalidUsageError(f"check {i}: {error}") from None
    return questions, True


def load(body: bytes) -> object:
    """The document; numbers with a point are decimals.

    Raises:
        InvalidUsageError: It is no JSON.
    """
    try:
        document: object = json.loads(
            body, parse_float=_decimal, parse_int=_integer, parse_constant=_no_constant
        )
    except RecursionError:
        raise InvalidUsageError("the body is nested too deeply; send an object") from None
    except ValueError as error:
        raise InvalidUsageError(f"the body is not JSON: {error}; send an object") from None
    return document


def _decimal(text: str) -> Decimal | str:
    return Decimal(text) if len(text) <= _MAX_NUMBER and _NUMBER.fullmatch(text) else text


def _integer(text: str) -> int | str:
    return int(text) if len(text) <= _MAX_NUMBER else text


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _question(item: object, bound_tenant_id: str | None) -> Question:
    if not isinstance(item, dict):
        raise InvalidUsageError("a check is not an object; send {tenant_id, meter, quantity, …}")
    if not item.keys() <= _FIELDS:
        unknown = ", ".join(sorted(item.keys() - _FIELDS))[:200]
        raise InvalidUsageError(
            f"unknown fields: {unknown}; known are {', '.join(sorted(_FIELDS))}"
        )
    tag = _tenant(item.get("tenant_id"), bound_tenant_id), _name("meter", item.get("meter"))
    quantity = parse_quantity(item.get("quantity", "1"))
    dimensions = item.get("dimensions")
    pairs = () if not dimensions else _dimensions(dimensions)
    reservation_id = item.get("reservation_id")
    is_reserved = _flag(item, "reserve")
    if not is_reserved:
        _refuse_without_reserve(item)
        return Question(tag, quantity, pairs)
    if quantity == 0:
        raise InvalidUsageError(
            "quantity is 0, and nothing can be reserved of it; ask without reserve"
        )
    return Question(
        tag,
        quantity,
        pairs,
        reservation_id="" if reservation_id is None else check_reservation_id(reservation_id),
        ttl_ms=parse_ttl(item.get("ttl_seconds", DEFAULT_TTL_SECONDS)),
        is_lease=_flag(item, "lease"),
    )


def _refuse_without_reserve(item: dict[str, Any]) -> None:
    if _flag(item, "lease") or item.get("reservation_id") is not None:
        named = "reservation_id" if item.get("reservation_id") is not None else "lease"
        raise InvalidUsageError(
            f"{named} is given, but reserve is not true; set it, or leave it out"
        )
    if "ttl_seconds" in item:
        parse_ttl(item["ttl_seconds"])


def _tenant(value: object, bound_tenant_id: str | None) -> str:
    if value is None:
        if bound_tenant_id is None:
            raise InvalidUsageError(
                "tenant_id is missing; name the tenant, or use a key bound to one"
            )
        return bound_tenant_id
    tenant_id = _name("tenant_id", value)
    if bound_tenant_id not in {None, tenant_id}:
        raise ForbiddenError(
            f"tenant_id is {tenant_id!r}, and the key is bound to {bound_tenant_id!r}; use another key",
            Refused.TENANT,
        )
    return tenant_id


@lru_cache(maxsize=10_000)
def _is_name(text: str) -> bool:
    return is_valid_name(text)


def _name(field: str, value: object) -> str:
    if value is None:
        raise InvalidUsageError(f"{field} is missing; name the {field.removesuffix('_id')}")
    if not isinstance(value, str):
        raise InvalidUsageError(f"{field} is not a string; put it in quotes")
    if not _is_name(value):
        raise InvalidUsageError(
            f"{field} {value[:128]!r} is not 1 to 128 characters of A-Z a-z 0-9 _ . : @ / -; correct it"
        )
    return value


def parse_quantity(value: object) -> int:
    """A quantity of a body, in billionths.

    Raises:
        InvalidUsageError: It is no number, below 0, too large, or has too many decimals.
    """
    if isinstance(value, str):
        return _quantity_of_text(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise InvalidUsageError("quantity is no number; send it as a string with decimals")
    if isinstance(value, int):
        if not 0 <= value <= MAX_QUANTITY:
            raise InvalidUsageError(
                f"quantity is {value}; it may be 0 to {MAX_QUANTITY}; ask for less at once"
            )
        return value * NANO
    return _checked(value)


@lru_cache(maxsize=10_000)
def _quantity_of_text(text: str) -> int:
    if len(text) > _MAX_NUMBER or not _NUMBER.fullmatch(text):
        raise InvalidUsageError(
            f"quantity {text[:_MAX_NUMBER]!r} is not a decimal number; write it like 12.5"
        )
    return _checked(Decimal(text))


def _checked(value: Decimal) -> int:
    try:
        check_quantity(value)
    except InvalidOperation:
        raise InvalidUsageError(f"quantity {value} has too many digits; round it") from None
    if value < 0:
        raise InvalidUsageError(f"quantity is {value}; it may not be below 0")
    return to_nano(value)


def _dimensions(value: object) -> Pairs:
    if not isinstance(value, dict):
        raise InvalidUsageError('dimensions is not an object; send {"name": "text"}')
    if len(value) > MAX_FILTER_NAMES:
        raise InvalidUsageError(
            f"dimensions has {len(value)} names; at most {MAX_FILTER_NAMES} are possible"
        )
    for name, text in value.items():
        if not isinstance(text, str):
            raise InvalidUsageError(f"dimensions: {name[:64]!r} is not a string; put it in quotes")
        if max(len(name), len(text)) > MAX_FILTER_LENGTH:
            raise InvalidUsageError(
                f"dimensions: {name[:64]!r} or its value is over {MAX_FILTER_LENGTH} characters; shorten it"
            )
    return tuple(sorted(value.items()))


def _flag(item: dict[str, Any], name: str) -> bool:
    value = item.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidUsageError(f"{name} is neither true nor false; write it without quotes")
    return value


def parse_ttl(value: object) -> int:
    """Milliseconds of a time to live in seconds.

    Raises:
        InvalidUsageError: It is no whole number, or out of bounds.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not 1 <= value <= MAX_TTL_SECONDS:  # type: ignore[operator]  # it is an integer here
        raise InvalidUsageError(
            f"ttl_seconds is {str(value)[:64]}; it must be a whole number, 1 to {MAX_TTL_SECONDS}"
        )
    return int(value) * 1_000  # type: ignore[call-overload,no-any-return]  # likewise


def check_reservation_id(value: object) -> str:
    """Return it if it can be the id of a reservation.

    Raises:
        InvalidUsageError: It has another character, or is too long.
    """
    if isinstance(value, str) and _ID.fullmatch(value):
        return value
    raise InvalidUsageError(
        f"reservation_id {str(value)[:MAX_ID_LENGTH]!r} is not 1 to {MAX_ID_LENGTH} characters of "
        "A-Z a-z 0-9 _ . : @ -; choose another"
    )
