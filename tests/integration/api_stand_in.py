"""A small service on a real port that answers as the query API is specified, and fails when told to.

It counts nothing and stores little: what a client asks, and how often, is what tests look at.
"""

import json
import socket
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

NOW = "2026-09-21T14:13:20Z"
LATER = "2026-10-01T00:00:00Z"

KEY = {
    "key_id": "k1",
    "name": "job",
    "scopes": ["query"],
    "tenant_id": None,
    "created_at": NOW,
    "expires_at": None,
    "revoked_at": None,
    "last_used_at": NOW,
    "rate_limit_per_second": 50,
    "replaces": None,
    "rotated_to": "k2",
}
QUOTA = {
    "quota_id": "q1",
    "tenant_id": None,
    "meter": "api.calls",
    "filter": {"region": ["eu", "us"]},
    "limit": "1000.5",
    "grace": "0",
    "period": "month",
    "anchor_day": 15,
    "timezone": "Europe/Berlin",
    "enforcement": "hard",
    "thresholds": [50, 100],
    "created_at": NOW,
    "updated_at": NOW,
}


@dataclass(kw_only=True)
class Seen:
    """One request that arrived."""

    method: str
    path: str
    parameters: list[tuple[str, str]]
    headers: dict[str, str]
    body: Any


@dataclass(kw_only=True)
class StandIn:
    """What it got, and what it will answer.

    Attributes:
        faults: Answers of the next requests: (status, headers); status 0: the connection breaks.
        limit: Units that may be reserved.
        exported: Lines of an export.
        breaks_after: Bytes after which an export breaks off.
        usage: Rows of aggregates.
    """

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    faults: deque[tuple[int, dict[str, str]]] = field(default_factory=deque)
    limit: int = 10
    held: dict[str, int] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    exported: int = 5
    breaks_after: int | None = None
    usage: list[dict[str, Any]] = field(default_factory=list)
    window: str = "total"
    timezone: str = "UTC"

    def asked(self, method: str, path: str) -> list[Seen]:
        return [one for one in self.seen if (one.method, one.path) == (method, "/v1/meter" + path)]

    async def answer(self, request: Request) -> Response:
        raw = await request.body()
        self.seen.append(
            Seen(
                method=request.method,
                path=request.url.path,
                parameters=request.query_params.multi_items(),
                headers=dict(request.headers),
                body=json.loads(raw) if raw else None,
            )
        )
        if self.faults:
            status, headers = self.faults.popleft()
            if status == 0:
                transport = request.scope["extensions"]["test.transport"]
                transport.abort()
                return Response()
            problem = {"title": "Not now", "status": status, "detail": "told to fail"}
            return JSONResponse(problem, status_code=status, headers=headers)
        return self.good(self.seen[-1], request)

    def good(self, seen: Seen, request: Request) -> Response:  # noqa: C901 - a table of routes
        path = seen.path.removeprefix("/v1/meter")
        match seen.method, path.strip("/").split("/"):
            case "GET", ["aggregates"]:
                return JSONResponse(self.aggregates(dict(seen.parameters)))
            case "POST", ["events"]:
                done = {"accepted": len(seen.body), "duplicates": 0, "rejected": []}
                return JSONResponse(done, status_code=202)
            case "GET", ["events", "export"]:
                return StreamingResponse(self.export(request), media_type="text/csv")
            case "POST", ["events", event_id, "void" | "correct" as action]:
                return JSONResponse(correction(event_id, action))
            case "POST", ["validate"]:
                return JSONResponse(self.decide(seen.body))
            case _, ["reservations", reservation_id, *action]:
                return JSONResponse(self.reservation(reservation_id, *action))
            case "PUT", ["quotas"]:
                return JSONResponse(QUOTA | seen.body)
            case "GET", ["quotas"]:
                return JSONResponse({"data": [QUOTA], "next_cursor": None})
            case "GET", ["quotas", "status"]:
                return JSONResponse({"data": [status()]})
            case "GET", ["quotas", _]:
                return JSONResponse(QUOTA)
            case "DELETE", ["quotas", _]:
                return Response(status_code=204)
            case "POST", ["keys", key_id, "rotate"]:
                made = KEY | {"replaces": key_id, "rotated_to": None, "key": "otm_k2_secret"}
                return JSONResponse(made, status_code=201)
            case "POST", ["keys"]:
                return JSONResponse(KEY | seen.body | {"key": "otm_k1_secret"}, status_code=201)
            case "GET", ["keys"]:
                return JSONResponse({"data": [KEY]})
            case "POST", ["tokens"]:
                return JSONResponse({"token": "ott_x", "expires_at": LATER}, status_code=201)
            case "GET", ["audit"]:
                return JSONResponse(audit(dict(seen.parameters).get("cursor")))
            case _:
                pass
        detail = {"title": "Not found", "status": 404, "detail": f"there is no {path}"}
        return JSONResponse(detail, status_code=404, headers={"x-request-id": "req-404"})

    def aggregates(self, parameters: dict[str, str]) -> dict[str, Any]:
        return {
            "meter": parameters["meter"],
            "aggregation": "sum",
            "unit": "{call}",
            "window": parameters.get("window", self.window),
            "timezone": parameters.get("timezone", self.timezone),
            "table": "usage_hour",
            "data": self.usage,
            "next_cursor": None,
        }

    async def export(self, request: Request) -> AsyncIterator[bytes]:
        yield b"event_id,quantity\n"
        # Chunks end in the middle of lines, as those of a network do.
        lines = b"".join(f"e{i},1\n".encode() for i in range(self.exported))
        for start in range(0, len(lines), 9_999):
            if self.breaks_after is not None and start > self.breaks_after:
                request.scope["extensions"]["test.transport"].abort()
                return
            yield lines[start : start + 9_999]

    def decide(self, body: Any) -> Any:
        if isinstance(body, list):
            return {"data": [self.decide(one) for one in body]}
        quantity = int(body["quantity"])
        reservation_id = body.get("reservation_id")
        taken = sum(self.held.values())
        allowed = reservation_id in self.held or taken + quantity <= self.limit
        if allowed and body.get("reserve"):
            self.held.setdefault(reservation_id, quantity)
            self.states.setdefault(reservation_id, "active")
        return {
            "allowed": allowed,
            "limit": str(self.limit),
            "used": "0",
            "reserved": str(taken),
            "remaining": str(self.limit - taken),
            "resets_at": LATER,
            "reason": "ok" if allowed else "limit_exceeded",
            "enforcement": "hard",
            "quota_id": "q1",
            "reservation_id": reservation_id if allowed else None,
            "expires_at": LATER if allowed else None,
        }

    def reservation(self, reservation_id: str, action: str = "") -> dict[str, Any]:
        states = {"commit": "committed", "release": "released"}
        if self.states.get(reservation_id) == "active" and action in states:
            self.states[reservation_id] = states[action]
        return {
            "reservation_id": reservation_id,
            "tenant_id": "t",
            "meter": "m",
            "quantity": str(self.held.get(reservation_id, 0)),
            "state": self.states.get(reservation_id, "expired"),
            "expires_at": LATER,
        }


def correction(event_id: str, action: str) -> dict[str, Any]:
    return {
        "event_id": event_id,
        "action": action,
        "reason": "wrong",
        "corrected_at": NOW,
        "key_id": "k1",
        "replaced_by": "e2" if action == "correct" else None,
    }


def status() -> dict[str, Any]:
    return {
        "quota": QUOTA,
        "tenant_id": "tenant_a",
        "period_start": NOW,
        "resets_at": LATER,
        "used": "600",
        "reserved": "100.25",
        "remaining": "300.25",
        "percent": "59.97",
        "crossed": [50],
    }


def audit(cursor: str | None) -> dict[str, Any]:
    entry = {
        "at": NOW,
        "key_id": "k1",
        "action": "key.create",
        "target": f"key {cursor or 'first'}",
        "tenant_id": None,
        "request_id": "r1",
        "details": {"name": "[bold]job"},
    }
    return {"data": [entry], "next_cursor": None if cursor else "second"}


class _Protocol(H11Protocol):
    """Lets a request break its connection: what a crash looks like from outside."""

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None:
            extensions: dict[str, Any] = {"test.transport": self.transport}
            self.cycle.scope["extensions"] = extensions


@contextmanager
def stand_in() -> Iterator[StandIn]:
    service = StandIn()
    every = ["GET", "POST", "PUT", "DELETE"]
    app = Starlette(routes=[Route("/{path:path}", service.answer, methods=every)])
    config = uvicorn.Config(app, log_config=None, ws="none", lifespan="off", http=_Protocol)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield service
        finally:
            server.should_exit = True
            thread.join()
