"""`otel-metering quotas` and `validate`: how much may be used, and how much is."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Final

import typer
from rich.table import Table
from rich.text import Text

from otel_metering.cli.api import ApiKey, ApiUrl, connect
from otel_metering.cli.filters import parse_lists, parse_pairs
from otel_metering.cli.numbers import parse_decimal
from otel_metering.cli.output import (
    Format,
    fields,
    number,
    print_csv,
    print_json,
    print_table,
    shown,
    shown_or,
)
from otel_metering.client import Decision, Quota, QuotaStatus

EXIT_DENIED: Final = 3
"""Exit status of `validate` when a quota says no; 1 is an error, 2 a wrong argument."""

QuotaId = Annotated[str, typer.Argument(help="The quota's id, see: quotas list.")]
Tenant = Annotated[str, typer.Option(help="Only of this tenant.")]
Meter = Annotated[str, typer.Option(help="Only of this meter.")]
Output = Annotated[Format, typer.Option("--format", help="How it is printed.")]


class Period(StrEnum):
    """When a quota begins anew."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    LIFETIME = "lifetime"


_HEADER: Final = (
    "quota id",
    "tenant",
    "meter",
    "limit",
    "grace",
    "period",
    "enforcement",
    "filter",
)


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    group = typer.Typer(help="Quotas: set, list, get, delete, status.", no_args_is_help=True)
    group.command(name="set")(_set)
    group.command(name="list")(_list)
    group.command(name="get")(_get)
    group.command(name="delete")(_delete)
    group.command(name="status")(_status)
    app.add_typer(group, name="quotas")
    app.command(name="validate")(_validate)


def _set(
    *,
    meter: Annotated[str, typer.Option(help="Of what.")],
    limit: Annotated[str, typer.Option(help="In the unit of the meter.")],
    period: Annotated[Period, typer.Option(help="When it begins anew.")] = Period.MONTH,
    tenant: Annotated[str, typer.Option(help="Of this tenant. Default: of all others.")] = "",
    only: Annotated[
        list[str] | None,
        typer.Option("--filter", help="DIMENSION=VALUE: count only this; may be repeated."),
    ] = None,
    grace: Annotated[str, typer.Option(help="Units beyond the limit that are allowed.")] = "",
    anchor_day: Annotated[int, typer.Option(help="Day on which months begin.", min=0, max=31)] = 0,
    timezone: Annotated[str, typer.Option(help="Of the period, like Europe/Berlin.")] = "",
    soft: Annotated[bool, typer.Option("--soft", help="Say when it is passed; allow.")] = False,
    threshold: Annotated[
        list[int] | None, typer.Option(help="Percent at which to say so; may be repeated.")
    ] = None,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Make a quota, or replace the one of the same tenant, meter, filter and period."""
    with connect(api_url, api_key) as client:
        quota = client.set_quota(
            meter,
            parse_decimal("--limit", limit),
            period=period.value,
            tenant_id=tenant or None,
            filters=parse_lists(only) or None,
            grace=parse_decimal("--grace", grace) if grace else None,
            anchor_day=anchor_day or None,
            timezone=timezone or None,
            enforcement="soft" if soft else "hard",
            thresholds=threshold,
        )
    _print_one(quota)


def _list(
    *,
    tenant: Tenant = "",
    meter: Meter = "",
    output: Output = Format.TABLE,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """List quotas."""
    with connect(api_url, api_key) as client:
        found = list(client.iter_quotas(tenant_id=tenant or None, meter=meter or None))
    rows = [_row(quota) for quota in found]
    _print(_HEADER, rows, [fields(quota) for quota in found], output, "there are no quotas")


def _get(
    quota_id: QuotaId,
    *,
    output: Output = Format.TABLE,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Show one quota."""
    with connect(api_url, api_key) as client:
        quota = client.quota(quota_id)
    if output is Format.TABLE:
        _print_one(quota)
    else:
        _print(_HEADER, [_row(quota)], fields(quota), output, "")


def _delete(quota_id: QuotaId, *, api_url: ApiUrl = "", api_key: ApiKey = "") -> None:
    """Delete a quota, at once."""
    with connect(api_url, api_key) as client:
        client.delete_quota(quota_id)
    typer.echo(f"quota {quota_id} is deleted")


def _status(
    *,
    tenant: Tenant = "",
    meter: Meter = "",
    output: Output = Format.TABLE,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Show how far quotas are used up."""
    with connect(api_url, api_key) as client:
        found = list(client.iter_quota_status(tenant_id=tenant or None, meter=meter or None))
    header = ("tenant", "meter", "period", "used", "reserved", "remaining", "limit", "%", "resets")
    rows = [_status_row(status) for status in found]
    _print(header, rows, [fields(status) for status in found], output, "there are no quotas")


def _validate(
    *,
    tenant: Annotated[str, typer.Option(help="Who wants to use it.")],
    meter: Annotated[str, typer.Option(help="What.")],
    quantity: Annotated[str, typer.Option(help="How much.")] = "1",
    dimension: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.")
    ] = None,
    output: Output = Format.TABLE,
    api_url: ApiUrl = "",
    api_key: ApiKey = "",
) -> None:
    """Ask the quotas whether a quantity is allowed; exits with 3 if not. Takes nothing from them."""
    with connect(api_url, api_key) as client:
        decision = client.validate(
            tenant,
            meter,
            parse_decimal("--quantity", quantity),
            dimensions=parse_pairs(dimension) or None,
        )
    if output is Format.JSON:
        print_json(fields(decision))
    elif output is Format.CSV:
        found = _decision(decision)
        print_csv(tuple(found), [tuple(found.values())])
    else:
        for name, text in _decision(decision).items():
            typer.echo(f"{name:<11} {text}")
    if not decision.allowed:
        raise typer.Exit(EXIT_DENIED)


def _decision(decision: Decision) -> Mapping[str, str]:
    return {
        "allowed": "yes" if decision.allowed else "no",
        "reason": decision.reason,
        "limit": number(decision.limit) or "none",
        "used": number(decision.used),
        "reserved": number(decision.reserved),
        "remaining": number(decision.remaining),
        "resets": shown_or(decision.resets_at, "never"),
        "enforcement": decision.enforcement or "",
        "quota id": decision.quota_id or "",
    }


def _print_one(quota: Quota) -> None:
    period = quota.period
    if quota.anchor_day is not None:
        period += f" from day {quota.anchor_day}"
    if quota.timezone != "UTC":
        period += f" ({quota.timezone})"
    rows = {
        "quota id": quota.quota_id,
        "tenant": _tenant(quota.tenant_id),
        "meter": quota.meter,
        "filter": _filter(quota),
        "limit": number(quota.limit),
        "grace": number(quota.grace),
        "period": period,
        "enforcement": quota.enforcement,
        "thresholds": ", ".join(f"{percent}%" for percent in quota.thresholds),
        "updated": shown(quota.updated_at),
    }
    for name, text in rows.items():
        if text:
            typer.echo(f"{name:<11} {text}")


def _print(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    documents: object,
    output: Format,
    nothing: str,
) -> None:
    if output is Format.JSON:
        print_json(documents)
    elif output is Format.CSV:
        print_csv(header, rows)
    elif not rows:
        print(nothing)
    else:
        table = Table()
        for name in header:
            numeric = name in {"limit", "grace", "used", "reserved", "remaining", "%"}
            table.add_column(name, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        print_table(table)


def _row(quota: Quota) -> tuple[str, ...]:
    return (
        quota.quota_id,
        _tenant(quota.tenant_id),
        quota.meter,
        number(quota.limit),
        number(quota.grace),
        quota.period,
        quota.enforcement,
        _filter(quota),
    )


def _status_row(status: QuotaStatus) -> tuple[str, ...]:
    quota = status.quota
    return (
        _tenant(status.tenant_id),
        quota.meter,
        quota.period,
        number(status.used),
        number(status.reserved),
        number(status.remaining),
        number(quota.limit) + (" soft" if quota.enforcement == "soft" else ""),
        "" if status.percent is None else f"{status.percent:.1f}",
        shown_or(status.resets_at, "never"),
    )


def _tenant(tenant_id: str | None) -> str:
    return "any" if tenant_id is None else tenant_id


def _filter(quota: Quota) -> str:
    return " ".join(f"{name}={','.join(values)}" for name, values in sorted(quota.filter.items()))
