"""Any interleaving of threads, forks, flushes, failures and restarts gives the totals of a small oracle."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TextIO

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.integration import sdk_actor
from tests.integration.sdk_backend import Act, Backend, running_backend
from tests.integration.sdk_process import DURABILITIES, KILL_PROOF, deliver_rest, environment

FAULTS: Final = [503, 500, 429, 302, 404, *(act for act in Act if act is not Act.REJECT_ONE)]
"""All of them are to be tried again, or taken; a rejected point would be gone."""

UNITS = st.integers(1, 1000)


class Actors:
    """Makes actors, from a process that has imported everything."""

    def __init__(self, backend: Backend, folder: Path, durability: str) -> None:
        self.backend = backend
        self.folder = folder
        self.durability = durability
        self._nursery = subprocess.Popen(
            [sys.executable, str(sdk_actor.__file__)],
            env=environment(backend.endpoint, folder, METERING_DURABILITY=durability),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self) -> "Actor":
        """A new process."""
        path = self.folder / "socket"
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen()
            assert self._nursery.stdin is not None
            self._nursery.stdin.write(f"{path}\n")
            self._nursery.stdin.flush()
            connection, _ = listener.accept()
        return Actor(connection, self)

    def wait_for_end(self) -> None:
        assert self._nursery.stdout is not None
        assert self._nursery.stdout.readline() == "ended\n"

    def stop(self) -> None:
        self._nursery.communicate(timeout=30)


class Actor:
    """One process."""

    def __init__(self, connection: socket.socket, actors: Actors) -> None:
        self._actors = actors
        connection.settimeout(60)
        self._lines: TextIO = connection.makefile("rw", buffering=1)
        connection.close()
        self._pid = int(self._lines.readline())

    def do(self, *command: object) -> str:
        """Its answer to a command."""
        self._lines.write(" ".join(map(str, command)) + "\n")
        answer = self._lines.readline().strip()
        assert answer, f"it ended at {command}"
        return answer

    def end(self) -> None:
        """As programs end."""
        self.do("end")
        self._forget()

    def kill(self) -> None:
        """Without a goodbye."""
        os.kill(self._pid, signal.SIGKILL)
        self._forget()

    def _forget(self) -> None:
        self._lines.close()
        self._actors.wait_for_end()


class Interleavings(RuleBasedStateMachine):
    """Rules do to an actor and to the backend what can happen; the oracle is three numbers and a set."""

    actors: Actors

    def __init__(self) -> None:
        super().__init__()
        self._backend = self.actors.backend
        self._folders = [Path(tempfile.mkdtemp(dir=self.actors.folder)) for _ in range(2)]
        self._has_faults = False
        self._safe = 0
        self._in_memory = 0
        self._safe_ids: set[str] = set()
        self._ids_in_memory: set[str] = set()
        self._is_kill_proof = self.actors.durability in KILL_PROOF
        with self._backend.lock:
            self._backend.points.clear()
            self._backend.events.clear()

    @initialize()
    def begin(self) -> None:
        self._actor = self.actors.start()
        self._actor.do("configure", self._folders[0])

    @rule(thread=st.integers(0, 2), units=UNITS)
    def record(self, thread: int, units: int) -> None:
        self._actor.do("record", thread, units)
        self._in_memory += units

    @rule(size=st.integers(2, 4), times=st.integers(1, 50))
    def record_from_threads_that_end(self, size: int, times: int) -> None:
        self._actor.do("crowd", size, times)
        self._in_memory += size * times

    @rule(event_id=st.sampled_from(["e1", "e2", "e3"]))
    def record_an_event(self, event_id: str) -> None:
        self._actor.do("event", event_id)
        self._ids_in_memory.add(event_id)

    @rule()
    def flush(self) -> None:
        self._actor.do("flush")
        self._be_safe()

    @rule(units=UNITS, how=st.sampled_from(["exit", "flush", "drop"]))
    def fork_a_child_that_records(self, units: int, how: str) -> None:
        self._actor.do("fork", units, how)
        if how != "drop" or self._is_kill_proof:
            self._safe += units

    @rule(folder=st.integers(0, 1))
    def configure_again(self, folder: int) -> None:
        self._actor.do("configure", self._folders[folder])
        self._be_safe()

    @rule(faults=st.lists(st.sampled_from(FAULTS), min_size=1, max_size=4))
    def the_backend_fails(self, faults: list[Act | int]) -> None:
        with self._backend.lock:
            self._backend.script.extend(faults)

    @rule(folder=st.integers(0, 1))
    def end_and_start_again(self, folder: int) -> None:
        self._actor.end()
        self._be_safe()
        self._restart(folder)

    @rule(folder=st.integers(0, 1))
    def kill_and_start_again(self, folder: int) -> None:
        self._actor.kill()
        self._lose_memory()
        self._restart(folder)

    @rule()
    def deliver(self) -> None:
        self._actor.do("deliver")
        self._be_safe()

    @precondition(lambda self: hasattr(self, "_actor"))
    @invariant()
    def nothing_arrives_that_was_not_used(self) -> None:
        total = self._backend.total(sdk_actor.METER)
        assert total <= self._safe + self._in_memory
        assert self._ids() <= self._safe_ids | self._ids_in_memory

    def teardown(self) -> None:
        if not hasattr(self, "_actor"):
            return
        self._actor.kill()
        self._lose_memory()
        with self._backend.lock:
            self._backend.script.clear()
        for folder in self._folders:
            deliver_rest(self._backend.endpoint, folder)
            shutil.rmtree(folder)
        assert self._backend.total(sdk_actor.METER) == self._safe
        assert self._ids() == self._safe_ids

    def _restart(self, folder: int) -> None:
        self._actor = self.actors.start()
        self._actor.do("configure", self._folders[folder])

    def _be_safe(self) -> None:
        self._safe += self._in_memory
        self._in_memory = 0
        self._safe_ids |= self._ids_in_memory
        self._ids_in_memory = set()

    def _lose_memory(self) -> None:
        if self._is_kill_proof:
            self._be_safe()
        self._in_memory = 0
        self._ids_in_memory = set()

    def _ids(self) -> set[object]:
        with self._backend.lock:
            return {attributes["metering.event.id"] for _, _, attributes in self._backend.events}


@pytest.fixture(params=DURABILITIES)
def actors(request: pytest.FixtureRequest) -> Iterator[Actors]:
    # A path of a socket may have a hundred characters only.
    with tempfile.TemporaryDirectory(prefix="otm-") as folder, ExitStack() as stack:
        backend = stack.enter_context(running_backend())
        actors = Actors(backend, Path(folder), request.param)
        stack.callback(actors.stop)
        yield actors


def _run(actors: Actors, examples: int, steps: int) -> None:
    run_state_machine_as_test(
        type("Machine", (Interleavings,), {"actors": actors}),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_interleaving_gives_the_totals_of_the_oracle(actors: Actors) -> None:
    _run(actors, examples=15, steps=25)


@pytest.mark.long
def test_any_long_interleaving_gives_the_totals_of_the_oracle(actors: Actors) -> None:
    _run(actors, examples=300, steps=60)
