"""What an OTLP sender is answered: the body of a success, and google.rpc.Status for anything else."""

import json
from enum import StrEnum
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus

from otel_metering.errors import InvalidUsageError
from receiver.admit import Outcome
from receiver.otlp import lazy_pb2 as lazy
from receiver.status import retry_after_of, status_of

MAX_MESSAGE = 1_000
"""Characters of a message. The Go exporter reads 64 KiB of an answer, and takes more for a failure."""


class MediaType(StrEnum):
    """The encodings of OTLP/HTTP."""

    PROTOBUF = "application/x-protobuf"
    JSON = "application/json"


def encode_response(outcome: Outcome, media_type: MediaType = MediaType.PROTOBUF) -> bytes:
    """An Export<Signal>ServiceResponse.

    `partial_success` stays unset when all is well. Usage in quarantine is stored, so `rejected` stays 0
    and the message is a warning (OTLP specification, "Partial Success"): a client must not send again.
    """
    message = ""
    if outcome.quarantined:
        message = _clean(
            f"{outcome.quarantined} in quarantine, not billed yet; the first: {outcome.warning}"
        )
    if media_type is MediaType.JSON:
        return json.dumps({"partialSuccess": {"errorMessage": message}} if message else {}).encode()
    if not message:
        return b""
    return lazy.ResponseWithMessage(
        partial_success=lazy.PartialSuccess(error_message=message)
    ).SerializeToString()


def encode_error(error: BaseException, media_type: MediaType = MediaType.PROTOBUF) -> bytes:
    """A google.rpc.Status, with the details that the OTLP specification asks for ("Failures")."""
    number, message = status_of(error).number, message_of(error)
    retry, bad = retry_info(error), _bad_request(error)
    if media_type is MediaType.PROTOBUF:
        status = RpcStatus(code=number, message=message)
        for detail in (retry, bad):
            if detail is not None:
                packed = AnyMessage()
                packed.Pack(detail)
                status.details.append(packed)
        return bytes(status.SerializeToString())
    details: list[dict[str, Any]] = []
    if retry is not None:
        details.append({"@type": _url(retry), "retryDelay": f"{retry.retry_delay.seconds}s"})
    if bad is not None:
        violations = [
            {"field": v.field, "description": v.description} for v in bad.field_violations
        ]
        details.append({"@type": _url(bad), "fieldViolations": violations})
    answer: dict[str, Any] = {"code": number, "message": message}
    if details:
        answer["details"] = details
    return json.dumps(answer).encode()


def retry_info(error: BaseException) -> RetryInfo | None:
    """When to send again; None: never."""
    seconds = retry_after_of(error)
    return None if seconds is None else RetryInfo(retry_delay=Duration(seconds=seconds))


def message_of(error: BaseException) -> str:
    """What the sender is told; any text becomes one that protobuf takes."""
    return _clean(str(error))


def _bad_request(error: BaseException) -> BadRequest | None:
    if not isinstance(error, InvalidUsageError):
        return None
    field = _clean(getattr(error, "field", "") or "body")
    violation = BadRequest.FieldViolation(field=field, description=message_of(error))
    return BadRequest(field_violations=[violation])


def _clean(text: str) -> str:
    return text[:MAX_MESSAGE].encode("utf-8", "replace").decode()


def _url(detail: BadRequest | RetryInfo) -> str:
    return f"type.googleapis.com/{detail.DESCRIPTOR.full_name}"
