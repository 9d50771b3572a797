"""A Flask service whose tenant is known only after authentication.

export METERING_API_KEY=otm_...          # the key that `make up` printed
.venv/bin/python examples/flask_app.py

curl -H 'authorization: Bearer acme-key' localhost:5000/images/7
.venv/bin/otel-metering usage --meter images.requests --group-by http.route
"""

import argparse

from flask import Flask, abort, request

import otel_metering
from otel_metering import record, set_tenant
from otel_metering.middleware.flask import Metering

CUSTOMERS = {"Bearer acme-key": "acme", "Bearer globex-key": "globex"}

app = Flask(__name__)
Metering(app, requests="images.requests")


@app.before_request
def authenticate() -> None:
    customer = CUSTOMERS.get(request.headers.get("authorization", ""))
    if customer is None:
        abort(401)  # counted without a tenant, which the receiver keeps in quarantine
    set_tenant(customer)


@app.get("/images/<int:number>")
def show_image(number: int) -> bytes:
    record("images.pixels", 640 * 480, attributes={"format": "png"})
    return b"\x89PNG" + bytes([number % 256])


def main() -> None:
    parser = argparse.ArgumentParser(description="A Flask service whose requests are metered.")
    parser.add_argument("--port", type=int, default=5000)
    otel_metering.configure(service_name="example-flask")
    app.run(port=parser.parse_args().port)


if __name__ == "__main__":
    main()
