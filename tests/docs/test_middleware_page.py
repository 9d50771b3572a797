"""The code of the page about middlewares runs, and counts what the page says."""

import json
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "middleware.md"

BEFORE = """
from otel_metering._cells import CellBook
from otel_metering._record import sink
book = CellBook(max_series_per_meter=100, on_new_thread=lambda: None)
sink.open(book)
"""

AFTER = """
import json
print(json.dumps([series for series in book.read().deltas]))
"""

GET = "environ = {'REQUEST_METHOD': 'GET', 'SCRIPT_NAME': '', 'PATH_INFO': '/', 'HTTP_X_TENANT_ID': 'acme'}\n"

USES = [
    "from starlette.testclient import TestClient\n"
    "app.get('/orders/{id}')(lambda id: 'ok')\n"
    "client = TestClient(app, headers={'x-tenant-id': 'acme'})\n"
    "client.get('/orders/1')\nclient.get('/health')\n",
    "app.get('/')(lambda: 'ok')\napp.test_client().get('/', headers={'x-tenant-id': 'acme'}).close()\n",
    "import django\nfrom django.conf import settings\nfrom django.test import Client\n"
    "settings.configure(MIDDLEWARE=MIDDLEWARE, OTEL_METERING=OTEL_METERING, ROOT_URLCONF='os', ALLOWED_HOSTS=['*'])\n"
    "django.setup()\nimport os\nfrom django.http import HttpResponse\nfrom django.urls import path\n"
    "os.urlpatterns = [path('', lambda request: HttpResponse('ok'))]\n"
    "Client(headers={'x-tenant-id': 'acme'}).get('/')\n",
    "from otel_metering.middleware.wsgi import MeteringMiddleware\n"
    + GET
    + "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n"
    "app = MeteringMiddleware(app, requests='api.requests', tenant=sources)\n"
    "app(environ, lambda *_: None).close()\n",
    GET + "app(environ, lambda *_: None).close()\n",
]


def test_the_code_of_the_page_counts() -> None:
    codes = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(codes) == len(USES)
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", BEFORE + code + use + AFTER],
            stdout=subprocess.PIPE,
            text=True,
        )
        for code, use in zip(codes, USES, strict=True)
    ]
    counted = [json.loads(process.communicate(timeout=60)[0]) for process in processes]

    requests = [
        (tenant, {name: value for name, _, value in dimensions})
        for series in counted
        for meter, tenant, dimensions in series
        if meter == "api.requests"
    ]
    always = {"http.request.method": "GET", "http.response.status_class": "2xx"}
    routes = ["/orders/{id}", "/", "/", None, None]
    assert requests == [
        ("acme", always if route is None else {**always, "http.route": route}) for route in routes
    ]
