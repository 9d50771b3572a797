"""A shop whose usage is metered: `python examples/shop_api.py --port 8000`.

curl -H 'x-tenant-id: acme' localhost:8000/products
curl -H 'x-tenant-id: acme' localhost:8000/orders --json '{"items": 2, "total": "12.34"}'

Usage goes to METERING_ENDPOINT, spans to OTEL_EXPORTER_OTLP_ENDPOINT (both: http://localhost:4318), with
METERING_API_KEY.
"""

import argparse
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal

import uvicorn
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from pydantic import BaseModel

import otel_metering
from otel_metering import meter
from otel_metering.middleware.asgi import MeteringMiddleware

PRODUCTS = [{"id": "p1", "price": "6.17"}, {"id": "p2", "price": "0.99"}]


class Order(BaseModel):
    items: int
    total: Decimal


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    yield
    # uvicorn ends by the signal that stopped it: exit handlers do not run, this does. The middleware does
    # the same for usage.
    tracer_provider.force_flush()


app = FastAPI(title="Shop", lifespan=lifespan)


@app.get("/products")
@meter("api.calls", attributes={"route": "/products"})
def list_products() -> list[dict[str, str]]:
    return PRODUCTS


@app.get("/products/{product_id}")
@meter("api.calls", attributes={"route": "/products/{product_id}"})
async def show_product(product_id: str) -> dict[str, str]:
    return next((product for product in PRODUCTS if product["id"] == product_id), {})


@app.post("/orders", status_code=201)
@meter("api.calls", attributes={"route": "/orders"})
@meter("orders.items", quantity=lambda _result, order: order.items)
@meter("orders.revenue", quantity=lambda _result, order: order.total)  # exact to the cent
async def place_order(order: Order) -> dict[str, str]:
    return {"total": str(order.total)}


otel_metering.configure(service_name="shop")
app.add_middleware(MeteringMiddleware, tenant_header="x-tenant-id")

headers = {"authorization": f"Bearer {os.environ.get('METERING_API_KEY', '')}"}  # noqa: TID251 -- an example has no config.py
tracer_provider = TracerProvider()
tracer_provider.add_span_processor(
    BatchSpanProcessor(OTLPSpanExporter(headers=headers), max_queue_size=100_000)
)
trace.set_tracer_provider(tracer_provider)
# One span per request, of kind server: the receiver's meter http.requests counts those.
FastAPIInstrumentor.instrument_app(
    app, tracer_provider=tracer_provider, exclude_spans=["send", "receive"]
)


def main() -> None:
    parser = argparse.ArgumentParser(description="A shop whose usage is metered.")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    listener = socket.create_server(("127.0.0.1", parser.parse_args().port), backlog=1024)
    host, port = listener.getsockname()
    print(f"ready http://{host}:{port}", flush=True)
    uvicorn.Server(uvicorn.Config(app, access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main()
