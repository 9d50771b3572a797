"""The shipped Collector, with its queue on disk, in front of the receiver: whatever is killed, nothing counts twice.

What the Collector acknowledged to its senders it owes to the receiver, and sends again until the receiver
acknowledged it: other requests than before, since it merges and splits them, and in another order. Killed
between deleting an item that was under way and putting it back, the Collector can lose it (`enqueueNotDispatchedReqs`
in exporterhelper's persistent queue); the witness between the two tells such a loss from one of the receiver.
"""

import random
import signal
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conformance.test_tls import Pki
from tests.e2e.up import Up
from tests.peers.collector.load import Load, assert_each_counts_once, until_it_stalls
from tests.peers.collector.process import GATEWAY, SIDECAR, TOKEN, Collector
from tests.peers.collector.secure_up import SecureUp
from tests.peers.collector.witness import Witness

pytestmark = [pytest.mark.peers, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture(params=["otlp_http/metering", "otlp_grpc/metering"])
def protocol(request: pytest.FixtureRequest) -> str:
    """HTTP is sent in the clear, as within one host; gRPC over TLS."""
    return str(request.param)


@pytest.fixture
def either_up(tmp_path: Path, new_up: Up, pki: Pki, protocol: str) -> Up:
    return new_up if protocol == "otlp_http/metering" else SecureUp(tmp_path / "up", pki)


@pytest.fixture
def collector(program: Path, tmp_path: Path, either_up: Up, pki: Pki, protocol: str) -> Collector:
    """A gateway in front of `either_up`."""
    secure = isinstance(either_up, SecureUp)
    return Collector(
        program,
        tmp_path / "gateway",
        to=f"https://{either_up.grpc}" if secure else f"http://{either_up.http}",
        metering=protocol,
        metering_ca_file=str(pki.path("ca.crt")),
    )


def _end(*processes: Collector | Up) -> None:
    for one in processes:
        if one.is_running:
            one.kill()


def test_what_a_collector_acknowledged_is_counted_once_when_the_receiver_is_killed(
    either_up: Up, collector: Collector, protocol: str
) -> None:
    up, chance, moment = either_up, random.Random(protocol), threading.Event()
    try:
        up.start()
        collector.start()
        with Load(collector.grpc, 1) as load:
            for _ in range(3):
                moment.wait(chance.uniform(0.5, 2))
                up.kill()
                up.start()
        sent = load.sent()
        assert len(sent) > 2_000

        assert_each_counts_once(up, sent)
    finally:
        _end(collector, up)


def test_what_a_collector_acknowledged_is_counted_once_when_the_receiver_hangs_and_is_slow(
    either_up: Up, collector: Collector
) -> None:
    up, moment = either_up, threading.Event()
    try:
        up.start()
        collector.start()
        with Load(collector.grpc, 3) as load:
            moment.wait(1)
            up.send_signal(signal.SIGSTOP)
            # Every attempt of the Collector times out, some after the receiver has read it.
            moment.wait(5)
            for _ in range(12):  # a tenth of its speed
                up.send_signal(signal.SIGCONT)
                moment.wait(0.05)
                up.send_signal(signal.SIGSTOP)
                moment.wait(0.45)
            up.send_signal(signal.SIGCONT)
            moment.wait(1)
        sent = load.sent()
        assert len(sent) > 2_000

        assert_each_counts_once(up, sent)
    finally:
        up.send_signal(signal.SIGCONT)
        _end(collector, up)


def test_what_the_receiver_acknowledged_to_a_collector_is_counted_once_when_both_are_killed(
    program: Path, new_up: Up, tmp_path: Path, pki: Pki, protocol: str
) -> None:
    up, chance, moment = new_up, random.Random(protocol), threading.Event()
    up.start()
    with Witness(up, pki, seed=1) as witness:
        collector = Collector(
            program,
            tmp_path / "gateway",
            to=f"https://{witness.grpc}" if "grpc" in protocol else f"http://{witness.http}",
            metering=protocol,
            metering_ca_file=str(pki.path("ca.crt")),
        )
        try:
            collector.start()
            with Load(collector.grpc, 2) as load:
                for number in range(9):
                    moment.wait(chance.uniform(0.2, 1.5))
                    one: Collector | Up = up if number % 3 == 2 else collector
                    one.kill()
                    one.start()
            sent = load.sent()
            assert len(sent) > 2_000

            lost = _never_acknowledged(witness, sent)
            assert_each_counts_once(
                up, {name: value for name, value in sent.items() if name not in lost}
            )
            assert max(witness.acknowledged.values()) > 1, "nothing was sent twice"
        finally:
            _end(collector)
    if lost:
        pytest.xfail(f"the Collector lost {len(lost)} of {len(sent)} items it had acknowledged")


def test_usage_through_a_sidecar_and_a_gateway_is_counted_once_when_the_receiver_is_killed(
    program: Path, new_up: Up, tmp_path: Path
) -> None:
    up, chance, moment = new_up, random.Random(5), threading.Event()
    gateway = Collector(program, tmp_path / "gateway", GATEWAY, to=f"http://{up.http}")
    to = f"http://{gateway.http}"
    sidecar = Collector(program, tmp_path / "sidecar", SIDECAR, to=to, key=TOKEN)
    try:
        up.start()
        gateway.start()
        sidecar.start()
        with Load(sidecar.grpc, 4) as load:
            for _ in range(3):
                moment.wait(chance.uniform(0.5, 1.5))
                up.kill()
                up.start()
        sent = load.sent()
        assert len(sent) > 1_000

        assert_each_counts_once(up, sent)
    finally:
        _end(sidecar, gateway)


def _never_acknowledged(witness: Witness, sent: Mapping[str, object]) -> set[str]:
    """What the receiver never got, when nothing more has come for a minute."""
    until_it_stalls(lambda: len(sent.keys() & witness.acknowledged), len(sent))
    return set(sent.keys() - witness.acknowledged)
