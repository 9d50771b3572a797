"""`/v1/meter/health`: whether the pipe works, found out by using it."""

from collections.abc import Callable

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from otel_metering.errors import MeteringError
from query_api.schemas import Check, HealthAnswer
from query_api.services import ServicesDep

router = APIRouter(prefix="/v1/meter/health", tags=["operation"])


@router.get(
    "",
    response_model=HealthAnswer,
    responses={503: {"model": HealthAnswer, "description": "A check failed"}},
)
def check_health(services: ServicesDep) -> JSONResponse:
    """Run every check. Needs no key.

    A process that only reads says of the receiver whether it answers, and is `ok` without it: reads go on.
    """
    checks = {name: _run(check) for name, check in services.checks.items()}
    is_ok = all(check.status == "ok" for check in checks.values())
    checks |= {name: _run(check) for name, check in services.upstreams.items()}
    answer = HealthAnswer(status="ok" if is_ok else "failed", checks=checks)
    return JSONResponse(answer.model_dump(), status_code=200 if is_ok else 503)


def _run(check: Callable[[], str]) -> Check:
    try:
        return Check(status="ok", detail=check())
    except MeteringError as error:
        return Check(status="failed", detail=str(error))
