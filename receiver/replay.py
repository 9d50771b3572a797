"""Requests that come from our own tables and not from a sender: through the same ingest, many at a time."""

import secrets
from collections.abc import Sequence
from typing import Final

from otel_metering.clock import Clock
from otel_metering.contract.meter import Meters
from otel_metering.errors import MeteringError, UnavailableError
from receiver.admit import MicroBatch, Outcome
from receiver.cumulative import Accumulators
from receiver.identity import ID_BYTES
from receiver.ingest import Ingest, Work
from receiver.metering import Metering
from receiver.seen import SeenIds
from receiver.telemetry import Telemetry

TIMEOUT_SECONDS: Final = 30.0

TRANSPORT: Final = "replay"


def replay(
    works: Sequence[Work], ingest: Ingest, telemetry: Telemetry
) -> list[Outcome | MeteringError]:
    """Admit `works`, in their order; the answer to each, once it is durable.

    After the first that cannot be taken at the moment none is sent.
    """
    futures = []
    refused: UnavailableError | None = None
    for work in works:
        try:
            futures.append((telemetry.request(TRANSPORT, work.signal), ingest.submit(work)))
        except UnavailableError as error:
            refused = error
            break
    answers: list[Outcome | MeteringError] = []
    for request, future in futures:
        try:
            answers.append(future.result(TIMEOUT_SECONDS))
            request.acknowledge()
        except MeteringError as error:
            answers.append(error)
            request.refuse(error)
        except TimeoutError:
            answers.append(UnavailableError("no answer in time"))
            request.end()
    missing = refused or UnavailableError("not sent")
    return answers + [missing] * (len(works) - len(answers))


def rehearse(works: Sequence[Work], meters: Meters, clock: Clock) -> list[Outcome | MeteringError]:
    """What would become of `works`, were they all new; changes nothing."""
    metering = Metering(meters)
    answers: list[Outcome | MeteringError] = []
    for work in works:
        batch = MicroBatch(
            metering,
            SeenIds(),
            Accumulators(lambda _: {}),
            now_ns=clock.now_ns(),
            new_id=lambda: secrets.token_bytes(ID_BYTES),
        )
        try:
            batch.add_otlp(work.signal, work.body, work.sender)
            answers.append(batch.admit().outcomes[0])
        except MeteringError as error:
            answers.append(error)
    return answers
