"""A FastAPI service: each request counted by route and status, with the bytes that were answered.

export METERING_API_KEY=otm_...          # the key that `make up` printed
.venv/bin/python examples/fastapi_app.py

curl -H 'x-tenant-id: acme' localhost:8000/files/readme
curl -H 'x-tenant-id: acme' localhost:8000/files/missing
.venv/bin/otel-metering usage --meter api.requests --group-by http.route --group-by http.response.status_class
"""

import argparse
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import StreamingResponse

import otel_metering
from otel_metering.middleware.asgi import MeteringMiddleware

FILES = {"readme": b"Read me.\n" * 1000}

app = FastAPI(title="Files")
app.add_middleware(
    MeteringMiddleware,
    tenant_header="x-tenant-id",  # behind a gateway that sets it; else tenants.jwt_claim(...)
    requests="api.requests",
    response_bytes="api.egress",
    exclude=["^/health$"],
)


@app.get("/files/{name}")
def read_file(name: str) -> StreamingResponse:
    if name not in FILES:
        raise HTTPException(404)
    return StreamingResponse(chunks(FILES[name]))  # counted as it is sent


@app.get("/health")
def health() -> str:
    return "well"


def chunks(content: bytes) -> Iterator[bytes]:
    for begin in range(0, len(content), 1024):
        yield content[begin : begin + 1024]


def main() -> None:
    parser = argparse.ArgumentParser(description="A FastAPI service whose requests are metered.")
    parser.add_argument("--port", type=int, default=8000)
    otel_metering.configure(service_name="example-fastapi")
    uvicorn.run(app, port=parser.parse_args().port)


if __name__ == "__main__":
    main()
