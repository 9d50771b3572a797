"""A process that meters as it is told: one command a line on stdin, one answer a line on stdout.

`python sdk_actor.py` itself never meters: it forks an actor for each one that is asked for, which saves the
imports of every new process.

    start <socket>            an actor that listens to commands from there
    record <thread> <units>   by one of its threads, which stay
    crowd <threads> <times>   so many new threads at once, one unit each time, which end
    event <id>                an event of one unit with this id
    flush                     to disk
    deliver                   and to the receiver; the answer says whether
    fork <units> <how>        a child that counts, then ends: exit, flush (then os._exit), drop (os._exit)
    configure <folder>        again, with another folder for the spool
    end                       as programs end
"""

import os
import queue
import socket
import sys
import threading
from collections.abc import Callable

import otel_metering
from otel_metering import record

SERVICE = "shop"
METER = "api.calls"
TENANT = "tenant_a"


def count(units: int = 1) -> None:
    record(METER, units, tenant=TENANT)


class Actor:
    """What the commands do."""

    def __init__(self) -> None:
        self._threads: dict[str, queue.SimpleQueue[int]] = {}
        self._done: queue.SimpleQueue[None] = queue.SimpleQueue()

    def do(self, command: str, *arguments: str) -> str:
        """Obey one command."""
        method: Callable[..., str | None] = getattr(self, command)
        return method(*arguments) or "done"

    def record(self, thread: str, units: str) -> None:
        if thread == "0":
            count(int(units))
            return
        if thread not in self._threads:
            self._threads[thread] = queue.SimpleQueue()
            threading.Thread(target=self._work, args=(self._threads[thread],), daemon=True).start()
        self._threads[thread].put(int(units))
        self._done.get()

    def crowd(self, size: str, times: str) -> None:
        def work() -> None:
            for _ in range(int(times)):
                count()

        threads = [threading.Thread(target=work) for _ in range(int(size))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def event(self, event_id: str) -> None:
        record("jobs", 1, tenant=TENANT, event_id=event_id)

    def flush(self) -> None:
        assert otel_metering.flush()

    def deliver(self) -> str:
        return str(otel_metering.flush(20.0, send=True))

    def fork(self, units: str, how: str) -> None:
        child = os.fork()
        if child == 0:
            count(int(units))
            if how == "exit":
                otel_metering.shutdown()
            elif how == "flush":
                assert otel_metering.flush()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0

    def configure(self, folder: str) -> None:
        otel_metering.configure(
            service_name=SERVICE,
            spool_dir=folder,
            flush_interval_seconds=3600.0,
            retry_initial_seconds=0.01,
            retry_max_seconds=0.05,
            timeout_seconds=0.2,
        )

    def end(self) -> None:
        otel_metering.shutdown()

    def _work(self, orders: "queue.SimpleQueue[int]") -> None:
        while True:
            count(orders.get())
            self._done.put(None)


def serve(path: str) -> None:
    """Be the actor whose commands come from the socket at `path`."""
    actor = Actor()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        with connection.makefile("rw", buffering=1) as lines:
            lines.write(f"{os.getpid()}\n")
            for line in lines:
                command, *arguments = line.split()
                lines.write(f"{actor.do(command, *arguments)}\n")
                if command == "end":
                    return


def main() -> None:
    """Fork an actor for each path of a socket on stdin."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                serve(line.strip())
            finally:
                os._exit(0)
        # Who killed it waits for this line, after which all it held is free.
        os.waitpid(child, 0)
        sys.stdout.write("ended\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
