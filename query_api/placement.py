"""Which process answers a route, where receiver and query API are processes of their own: one table.

*Here* is what only reads tables that grow by themselves. The receiver answers what decides or writes usage, what
needs the state of its gate, and every administrative change: one process makes them in one order, and what it
admits goes by them at once. A quota is also read there, so that it is seen as it was put, whoever is asked. Of
keys and meters this process reads the table again before the answer to a change is given back.

A route that is not in this table stops the start of such a process, and fails a test.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Place(StrEnum):
    """Who answers, and what has changed then."""

    HERE = "here"
    RECEIVER = "receiver"
    RECEIVER_KEYS = "receiver, keys change"
    RECEIVER_METERS = "receiver, meters change"


PLACES: Final[Mapping[str, Place]] = {
    # Usage comes in, and is corrected.
    "send_events": Place.RECEIVER,
    "ingest_events": Place.RECEIVER,
    "void_event": Place.RECEIVER,
    "correct_event": Place.RECEIVER,
    "replay_quarantine": Place.RECEIVER,
    "discard_quarantine": Place.RECEIVER,
    # Whether more may come in.
    "validate": Place.RECEIVER,
    "get_reservation": Place.RECEIVER,
    "commit_reservation": Place.RECEIVER,
    "extend_reservation": Place.RECEIVER,
    "release_reservation": Place.RECEIVER,
    "put_quota": Place.RECEIVER,
    "delete_quota": Place.RECEIVER,
    "get_quota": Place.RECEIVER,
    "list_quotas": Place.RECEIVER,
    "quota_status": Place.RECEIVER,
    "read_entitlement_value": Place.RECEIVER,
    "read_customer_entitlement_value": Place.RECEIVER,
    # What it counts of itself.
    "read_metrics": Place.RECEIVER,
    # Who may, and which meters there are.
    "create_key": Place.RECEIVER_KEYS,
    "rotate_key": Place.RECEIVER_KEYS,
    "revoke_key": Place.RECEIVER_KEYS,
    "create_openmeter_meter": Place.RECEIVER_METERS,
    "update_openmeter_meter": Place.RECEIVER_METERS,
    "delete_openmeter_meter": Place.RECEIVER_METERS,
    # Reads. A token is signed, and changes nothing but the audit log.
    "list_events": Place.HERE,
    "export_events": Place.HERE,
    "get_event": Place.HERE,
    "list_corrections": Place.HERE,
    "aggregate": Place.HERE,
    "list_meters": Place.HERE,
    "list_quarantine": Place.HERE,
    "summarize_quarantine": Place.HERE,
    "list_keys": Place.HERE,
    "create_token": Place.HERE,
    "list_audit": Place.HERE,
    "list_ingested_events": Place.HERE,
    "query_meter": Place.HERE,
    "query_meter_by_body": Place.HERE,
    "list_meter_subjects": Place.HERE,
    "list_meter_group_by_values": Place.HERE,
    "list_openmeter_meters": Place.HERE,
    "read_openmeter_meter": Place.HERE,
    "list_openmeter_subjects": Place.HERE,
    "read_openmeter_subject": Place.HERE,
    # Of this process.
    "check_health": Place.HERE,
    "openapi": Place.HERE,
    "swagger_ui_html": Place.HERE,
    "swagger_ui_redirect": Place.HERE,
    "_to_docs": Place.HERE,
}
