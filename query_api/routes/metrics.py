"""`/metrics`: what the receiver counts of itself, for Prometheus."""

from typing import Final

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse

from query_api.auth import check_metrics_access
from query_api.problems import NotFoundError, documented
from query_api.services import ServicesDep

router = APIRouter(tags=["operation"])

_MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_EXAMPLE: Final = 'otel_metering_receiver_edge_in_total{signal="metric",transport="grpc"} 42\n'


@router.get(
    "/metrics",
    dependencies=[Depends(check_metrics_access)],
    response_class=PlainTextResponse,
    responses={
        200: {
            "description": "The text exposition format of Prometheus, version 0.0.4.",
            "content": {"text/plain": {"example": _EXAMPLE}},
        },
        **documented(NotFoundError),
    },
)
def read_metrics(services: ServicesDep) -> PlainTextResponse:
    """Read the numbers of the receiver in this process.

    Needs a key with scope `query` that is bound to no tenant, unless METERING_METRICS_PUBLIC is set.
    No number names a tenant; a key is named by its id.
    """
    if services.metrics is None:
        raise NotFoundError("there is no receiver in this process; ask where it runs")
    return PlainTextResponse(services.metrics(), media_type=_MEDIA_TYPE)
