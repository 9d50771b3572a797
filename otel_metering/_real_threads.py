"""`local` of real threads, also where gevent gave that name to one of greenlets."""

import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threading import local as thread_local
else:

    def _thread_local() -> type:
        # Looked up, not imported: who does not use gevent may not have it.
        monkey = sys.modules.get("gevent.monkey")
        return threading.local if monkey is None else monkey.get_original("_thread", "_local")

    thread_local = _thread_local()

__all__ = ["thread_local"]
