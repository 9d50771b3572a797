"""`/v1/meter/validate`: may a tenant use so much more?

The one route that stands in the way of every request of a customer. So it takes the request as it is: FastAPI
resolves nothing, Pydantic checks nothing, and what it answers is written by hand. Tests compare both with the
document.
"""

import asyncio
import json
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from otel_metering.contract.attributes import API_KEY_HEADER
from query_api.auth import check_scope, identify
from query_api.checks import MAX_CHECKS, parse_checks
from query_api.problems import ConflictError, TooLargeError, documented
from query_api.quota_schemas import CheckAnswer, ChecksAnswer, QuotaCheck, check_json
from query_api.services import Services
from receiver.store.keys import Principal, Scope

router = APIRouter(prefix="/v1/meter/validate", tags=["quotas"])

_BEARER: Final = "bearer "
_EXAMPLE: Final = {"tenant_id": "tenant_a", "meter": "api.calls", "quantity": "1"}
_DOC: Final[dict[str, Any]] = {
    "security": [{"HTTPBearer": []}, {"APIKeyHeader": []}],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "oneOf": [
                        QuotaCheck.model_json_schema(),
                        {
                            "type": "array",
                            "maxItems": MAX_CHECKS,
                            "items": QuotaCheck.model_json_schema(),
                        },
                    ]
                },
                "examples": {
                    "check": {"summary": "One check", "value": _EXAMPLE},
                    "reserve": {
                        "summary": "Hold units for a minute",
                        "value": {**_EXAMPLE, "reserve": True, "ttl_seconds": 60},
                    },
                    "many": {"summary": "A list", "value": [_EXAMPLE]},
                },
            }
        },
    },
}


@router.post(
    "",
    response_model=CheckAnswer | ChecksAnswer,
    responses=documented(ConflictError, TooLargeError),
    openapi_extra=_DOC,
)
async def validate(request: Request) -> Response:
    """Ask whether usage is allowed, and with `reserve` hold its units for a time.

    One check, or a list of up to 1,000, each answered for itself. Denied is an answer too: 200 with
    `allowed: false`. Units that are held count against every quota, until usage with the attribute
    `metering.reservation.id`, a commit or a release ends the reservation, or its time is over.
    """
    services: Services = request.app.state.services
    principal = authenticate(request, services)
    questions, is_list = parse_checks(await request.body(), principal.tenant_id)
    gate = services.quotas.gate
    if not is_list:
        return _json(check_json(await gate.check(questions[0])))
    # Side by side, so that Redis is asked once for many.
    verdicts = await asyncio.gather(*(gate.check(one) for one in questions))
    return _json({"data": [check_json(one) for one in verdicts]})


def authenticate(request: Request, services: Services) -> Principal:
    """Who asks, if that key may: what the dependencies of `auth` do, without their cost.

    Raises:
        UnauthenticatedError: See `identify`.
        ForbiddenError: It lacks the scope.
        RateLimitedError: See `identify`.
        UnavailableError: See `identify`.
    """
    header = request.headers.get("authorization", "")
    is_bearer = header[: len(_BEARER)].lower() == _BEARER
    key = header[len(_BEARER) :] if is_bearer else request.headers.get(API_KEY_HEADER)
    principal = identify(request, services, key)
    check_scope(principal, Scope.VALIDATE)
    return principal


def _json(content: object) -> Response:
    return Response(json.dumps(content).encode(), media_type="application/json")
