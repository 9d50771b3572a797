"""Shapes of the audit log."""

from pydantic import BaseModel, Field

from query_api.schemas import FROM_DOC, TO_DOC


class AuditParameters(BaseModel):
    """Which orders."""

    from_: str | None = Field(None, alias="from", description=FROM_DOC)
    to: str | None = Field(None, description=TO_DOC)
    actor: str | None = Field(None, description="Only orders of this key.")
    action: str | None = Field(None, description="Only this action, as `key.revoke`.")
    target: str | None = Field(None, description="Only changes of what has this id.")
    tenant_id: str | None = Field(
        None, description="Only this tenant. A key bound to a tenant sees that one anyway."
    )
    limit: int = Field(100, ge=1, le=1000, description="Rows on one page.")
    cursor: str | None = Field(None, description="`next_cursor` of the page before.")


class AuditRow(BaseModel):
    """An order: it is written before the change is made, which may then have failed."""

    at: str
    key_id: str = Field(
        description="Whose order; `(start)`: nobody's, at the start of the service."
    )
    action: str
    target: str
    tenant_id: str | None = Field(description="Whose that is; null: the whole service.")
    request_id: str = Field(description="As in X-Request-Id and the access log.")
    details: dict[str, str]


class AuditAnswer(BaseModel):
    """Newest first."""

    data: list[AuditRow]
    next_cursor: str | None = Field(
        description="Continues behind this page; null: it was the last."
    )
