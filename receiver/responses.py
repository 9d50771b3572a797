"""What an OTLP sender is answered when its request was taken."""

from receiver.admit import Outcome
from receiver.otlp import lazy_pb2 as lazy


def encode_response(outcome: Outcome) -> bytes:
    """An Export<Signal>ServiceResponse.

    `partial_success` stays unset when all is well. Usage in quarantine is stored, so `rejected` stays 0
    and the message is a warning (OTLP specification, "Partial Success"): a client must not send again.
    """
    if not outcome.quarantined:
        return b""
    message = f"{outcome.quarantined} in quarantine, not billed yet; the first: {outcome.warning}"
    return lazy.ResponseWithMessage(
        partial_success=lazy.PartialSuccess(error_message=message[:1_000])
    ).SerializeToString()
