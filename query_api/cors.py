"""Cross-origin reads: which web pages may show usage that their visitor's token reads.

Reads only, and nothing of cookies: a page sends the token that its own server gave it.
"""

import re
from collections.abc import Sequence
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from otel_metering.contract.attributes import API_KEY_HEADER
from query_api.access_log import HEADER as REQUEST_ID

_MAX_AGE_SECONDS: Final = 600
_SENT: Final = ("Authorization", API_KEY_HEADER, "If-None-Match", REQUEST_ID)
_SHOWN: Final = ("ETag", "Retry-After", REQUEST_ID)


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """`app`, which pages of these origins may read: https://shop.example, https://*.example, or `*`."""
    if not origins:
        return app
    patterns = ["[^/]*".join(map(re.escape, origin.split("*"))) for origin in origins]
    return CORSMiddleware(
        app,
        allow_origins=["*"] if "*" in origins else [],
        allow_origin_regex="|".join(patterns),
        allow_methods=["GET"],
        allow_headers=_SENT,
        expose_headers=_SHOWN,
        max_age=_MAX_AGE_SECONDS,
    )
