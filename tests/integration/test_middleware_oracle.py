"""Whatever requests come, in whatever order: what is counted is what the oracle says."""

import asyncio
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from otel_metering import set_tenant
from otel_metering.middleware.asgi import App, MeteringMiddleware, Receive, Scope, Send
from otel_metering.middleware.wsgi import MeteringMiddleware as WsgiMiddleware
from tests.integration.web import (
    ALL,
    call,
    call_wsgi,
    counting,
    environ_of,
    scope_of,
)


class Action(NamedTuple):
    method: str
    path: str
    tenant: str | None
    later: str | None
    status: int
    incoming: list[bytes]
    outgoing: list[bytes]
    fails: bool


NAMES = st.sampled_from([None, "acme", "b:1", "not valid", ""])


ACTIONS = st.builds(
    Action,
    method=st.sampled_from(["GET", "POST", "HEAD", "BREW"]),
    path=st.sampled_from(["/orders/1", "/orders/2", "/none", "/health"]),
    tenant=NAMES,
    later=st.sampled_from([None, "late"]),
    status=st.sampled_from([200, 201, 204, 302, 404, 503]),
    incoming=st.lists(st.binary(max_size=4), max_size=3),
    outgoing=st.lists(st.binary(max_size=4), max_size=3),
    fails=st.booleans(),
)


def oracle(actions: list[Action]) -> dict[tuple[str, str | None, str], float]:
    """What was used, from what was done."""
    found: dict[tuple[str, str | None, str], float] = {}
    for do in actions:
        if do.path == "/health":
            continue
        tenant = do.later or (do.tenant if do.tenant in ("acme", "b:1") else None)
        method = "_OTHER" if do.method == "BREW" else do.method
        route = "/orders/{id}" if do.path.startswith("/orders") else "-"
        key = f"{method} {route} {do.status // 100}xx"
        has_body = do.method != "HEAD" and do.status not in (204, 304)
        sizes = (1, len(b"".join(do.incoming)), len(b"".join(do.outgoing)) * has_body)
        for meter, units in zip(("requests", "bytes.in", "bytes.out"), sizes, strict=True):
            if units:
                found[meter, tenant, key] = found.get((meter, tenant, key), 0) + units
    return found


class Template(NamedTuple):
    path_format: str


@given(st.lists(ACTIONS, max_size=12), st.booleans())
def test_any_requests_at_once_are_counted_as_the_oracle_does(
    actions: list[Action], is_doubled: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        do: Action = scope["do"]
        if do.path.startswith("/orders"):
            scope["route"] = Template("/orders/{id}")
        while (await receive())["more_body"]:
            pass
        if do.later is not None:
            set_tenant(do.later)
        await send({"type": "http.response.start", "status": do.status})
        for part in do.outgoing:
            await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": part, "more_body": True})
        if do.fails:
            raise KeyError(do.path)
        await send({"type": "http.response.body"})

    middleware = MeteringMiddleware(app, **ALL, exclude=["/health"])
    served: App = MeteringMiddleware(middleware, **ALL) if is_doubled else middleware
    if is_doubled:
        actions = [do for do in actions if do.path != "/health"]

    async def use() -> None:
        calls = []
        for do in actions:
            headers = {} if do.tenant is None else {"x_tenant_id": do.tenant}
            scope = {**scope_of(do.method, do.path, **headers), "do": do}
            calls.append(call(served, scope, *do.incoming))
        failures = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(one, KeyError) for one in failures] == [do.fails for do in actions]

    with counting() as counted:
        asyncio.run(use())
        assert counted.usage() == oracle(actions)


CALLS = st.tuples(
    st.sampled_from(["GET", "POST", "HEAD"]),
    st.sampled_from([None, "acme", "not valid"]),
    st.sampled_from(["200 OK", "204 No Content", "404 Not Found"]),
    st.binary(max_size=6),
    st.lists(st.binary(min_size=1, max_size=4), max_size=4),
    st.sampled_from([list, iter]),
    st.sampled_from([None, 1, 2]),
)


@given(st.lists(CALLS, max_size=10), st.booleans())
def test_any_requests_are_counted_as_the_oracle_does(calls: list[Any], is_doubled: bool) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response(environ["status"], [])
        while environ["wsgi.input"].read(4):
            pass
        return environ["answer"]

    metered = WsgiMiddleware(app, **ALL)
    served = WsgiMiddleware(metered, **ALL) if is_doubled else metered
    expected: dict[tuple[str, str | None, str], float] = {}
    with counting() as counted:
        for method, tenant, status, body, chunks, form, take in calls:
            headers = {} if tenant is None else {"HTTP_X_TENANT_ID": tenant}
            environ = environ_of(method, "/", body, **headers)
            call_wsgi(served, {**environ, "status": status, "answer": form(chunks)}, take=take)
            seen = b"".join(chunks[:take]) if method != "HEAD" and status[:3] != "204" else b""
            key = f"{method} - {status[0]}xx"
            for meter, units in (
                ("requests", 1),
                ("bytes.in", len(body)),
                ("bytes.out", len(seen)),
            ):
                whose = "acme" if tenant == "acme" else None
                if units:
                    expected[meter, whose, key] = expected.get((meter, whose, key), 0) + units
        assert counted.usage() == expected
