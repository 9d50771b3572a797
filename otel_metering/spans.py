"""Usage from the spans that instrumentations make anyway: requests served, tokens of language models.

Usage is counted in the process that ends the span, whatever becomes of the span afterwards: exporters
drop spans when they fall behind, and sampling leaves most of them out. So nothing is ever counted from
exported spans. `MeteringSampler` lets the spans that matter be recorded, though not exported, where
sampling would drop them.

    from otel_metering.spans import meter_spans
    meter_spans(trace.get_tracer_provider())

The default meters have no entry in `meters.yaml`, on purpose: a receiver that is sent the same spans, or
the metrics of the same instrumentation, counts those under `http.requests` and `llm.tokens`.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from opentelemetry import baggage
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, StatusCode, TraceState
from opentelemetry.util.types import Attributes

from otel_metering._context import Holder, claimed_by, current
from otel_metering._guard import Problem, guarded, problems
from otel_metering._instrumentation_config import DEFAULT_REQUESTS_METER, DEFAULT_TOKENS_METER
from otel_metering._lifecycle import flush
from otel_metering._record import record
from otel_metering._semconv import (
    INFERENCES,
    MODEL_SOURCES,
    OPERATION,
    REQUEST_ATTRIBUTES,
    STATUS_CLASS,
    TOKENS,
    TOTALS,
    first,
    is_of_model,
    may_have_tokens,
    named,
    request_sources,
    status_class,
)
from otel_metering.contract.attributes import TENANT_ID
from otel_metering.contract.event import is_valid_name

SERVED_KINDS: Final = (SpanKind.SERVER, SpanKind.CONSUMER)
"""Kinds of spans that are the work for one request or message."""

_SpanKey = tuple[int, int]


class _Started(weakref.ref[Span]):
    """A span at work. Its end is reported with a copy, which nothing could be found by.

    Attributes:
        key: Trace id and span id.
        holder: What was current when it started; its tenant may have become known since.
        claimed: Meters that a middleware around it counts, which may be done before the span is.
        tenant: What trusted baggage says.
    """

    __slots__ = ("claimed", "holder", "key", "tenant")
    claimed: frozenset[str]
    key: _SpanKey
    holder: Holder
    tenant: object


class MeteringSpanProcessor(SpanProcessor):
    """Counts each request that a span stands for, and the tokens that calls of models used.

    It sees only spans that are recorded: use it with `MeteringSampler`, or call `meter_spans`, which does
    both. A request that a middleware counts under the same meter is left to the middleware.

    The tenant is the span's attribute `tenant.id`, else that of the block or request in which the span
    started, or ended. One that is no valid id is left out, and counted in `stats().ignored_tenants`.

    Args:
        requests: The meter of requests: 1 for each span of one of `kinds`; None: they are not counted.
        tokens: The meter of tokens, by `gen_ai.token.type`; None: they are not counted. Of these, tokens
            read from and written to a cache, and tokens of reasoning, are counted once more as
            `<tokens>.cache_read`, `.cache_creation` and `.reasoning`.
        kinds: What a request is.
        attributes: Attributes of a request's span that become dimensions.
        operations: Values of `gen_ai.operation.name` whose spans have tokens of their own. Spans without
            this attribute count as well.
        tenant_attribute: The attribute that names the tenant.
        trust_baggage: Whether the baggage that a request brings may say the tenant, where nothing else
            does. Anybody can send it: only behind a gateway that sets or removes it.
    """

    def __init__(
        self,
        requests: str | None = DEFAULT_REQUESTS_METER,
        *,
        tokens: str | None = DEFAULT_TOKENS_METER,
        kinds: Sequence[SpanKind] = SERVED_KINDS,
        attributes: Sequence[str] = REQUEST_ATTRIBUTES,
        operations: frozenset[str] = INFERENCES,
        tenant_attribute: str = TENANT_ID,
        trust_baggage: bool = False,
    ) -> None:
        self._requests = requests
        self._tokens = tokens
        # Tuples: the hash of an enum's member, which a set asks for, is computed in Python.
        self._kinds = tuple(kinds) if requests is not None else ()
        self._followed = (*self._kinds, SpanKind.CLIENT) if tokens is not None else self._kinds
        self._names = request_sources(attributes)
        self._has_status_class = STATUS_CLASS in attributes
        self._counts = [
            (f"{tokens}{count.part}", count.type, count.attributes)
            for count in (TOKENS if tokens is not None else ())
        ]
        self._operations = operations
        self._tenant_attribute = tenant_attribute
        self._trust_baggage = trust_baggage
        self._started: dict[_SpanKey, _Started] = {}
        self._forget = _forgetter(self._started)
        self._is_attached = True

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Note whose request this is, as far as it is known."""
        if span.kind in self._followed:
            with guarded:
                self._follow(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        """Count what the span stands for."""
        if not self._is_attached:
            return
        with guarded:
            kind = span.kind
            started = None
            if kind in self._followed:
                context = span.context
                started = self._started.pop((context.trace_id, context.span_id), None)
            attributes = _attributes_of(span)
            if self._requests is not None and kind in self._kinds:
                self._count_request(self._requests, attributes, started)
            if self._tokens is not None and may_have_tokens(attributes):
                self._count_tokens(self._tokens, span, attributes, started)

    def detach(self) -> None:
        """Count nothing any more; a TracerProvider cannot be freed of a processor."""
        self._is_attached = False

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Write all usage recorded so far to disk."""
        return flush(timeout_millis / 1000)

    def _follow(self, span: Span, parent_context: Context | None) -> None:
        context = span.context
        started = _Started(span, self._forget)
        started.key = context.trace_id, context.span_id
        started.holder = holder = current.get()
        started.claimed = holder.claimed
        started.tenant = (
            baggage.get_baggage(self._tenant_attribute, parent_context)
            if self._trust_baggage
            else None
        )
        self._started[started.key] = started

    def _count_request(
        self, meter: str, attributes: Mapping[str, object], started: _Started | None
    ) -> None:
        if _is_claimed(meter, started):
            return
        dimensions = named(self._names, attributes)
        if self._has_status_class:
            found = status_class(attributes)
            if found is not None:
                dimensions[STATUS_CLASS] = found
        record(meter, tenant=self._tenant(attributes, started), attributes=dimensions)

    def _count_tokens(
        self,
        meter: str,
        span: ReadableSpan,
        attributes: Mapping[str, object],
        started: _Started | None,
    ) -> None:
        operation = attributes.get(OPERATION)
        used = [
            (part, token_type, quantity)
            for part, token_type, names in self._counts
            if isinstance(quantity := first(names, attributes), int | float) and quantity
        ]
        if operation is not None and operation not in self._operations:
            if used and operation not in TOTALS:
                problems.report(
                    Problem.UNCOUNTED_TOKENS,
                    f"gen_ai.operation.name {operation!r} is not among the operations that are counted",
                )
            return
        if not used:
            if operation is not None and span.status.status_code is not StatusCode.ERROR:
                problems.report(
                    Problem.UNCOUNTED_TOKENS,
                    f"the span {span.name!r} of a model's call says no tokens; when streaming, ask "
                    "for them (OpenAI: stream_options={'include_usage': True})",
                )
            return
        if _is_claimed(meter, started):
            return
        tenant = self._tenant(attributes, started)
        dimensions = named(MODEL_SOURCES, attributes)
        for part, token_type, quantity in used:
            record(
                part,
                quantity,
                tenant=tenant,
                attributes={**dimensions, "gen_ai.token.type": token_type},
            )

    def _tenant(self, attributes: Mapping[str, object], started: _Started | None) -> str | None:
        said = attributes.get(self._tenant_attribute)
        if said is None:
            tenant = (
                started.holder.tenant if started is not None else None
            ) or current.get().tenant
            if tenant is not None or started is None or started.tenant is None:
                return tenant
            said = started.tenant
        text = str(said)
        if is_valid_name(text):
            return text
        problems.report(Problem.IGNORED_TENANTS, "a span's tenant is not a valid id")
        return None


class MeteringSampler(Sampler):
    """Records the spans that are metered where `root` drops them; they are not exported.

    It has to be the outermost sampler: `MeteringSampler(ParentBased(...))`. What `root` decides on
    exporting stays as it is, for these spans, their children, and other services.

    Args:
        root: The sampler that decides what is exported.
        kinds: Kinds of spans that are recorded; and those of language models, whatever their kind, if
            one of their attributes says so when they start.
    """

    def __init__(self, root: Sampler, kinds: Sequence[SpanKind] = SERVED_KINDS) -> None:
        self.root = root
        self._kinds = tuple(kinds)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """What `root` says, but RECORD_ONLY instead of DROP for a span that is metered."""
        result = self.root.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )
        if result.decision is not Decision.DROP or not (
            kind in self._kinds or is_of_model(attributes)
        ):
            return result
        # Samplers that drop a span drop its attributes as well: those given at its start would be lost.
        kept = {**(attributes or {}), **(result.attributes or {})}
        return SamplingResult(Decision.RECORD_ONLY, kept, result.trace_state)

    def get_description(self) -> str:
        """Name of this sampler and its root."""
        return f"MeteringSampler{{{self.root.get_description()}}}"


_undo_of: Final[weakref.WeakKeyDictionary[TracerProvider, Callable[[], None]]] = (
    weakref.WeakKeyDictionary()
)


def meter_spans(
    provider: TracerProvider,
    processor: MeteringSpanProcessor | None = None,
    *,
    kinds: Sequence[SpanKind] = SERVED_KINDS,
) -> Callable[[], None]:
    """Count usage from the spans of `provider`, whatever its sampling.

    Called again for the same provider it replaces what was counted before, so that nothing counts twice.

    Args:
        provider: What instrumentations get their tracers from.
        processor: Says what is counted; None: one with its defaults.
        kinds: Kinds of spans that are recorded even if they are not sampled, see `MeteringSampler`.

    Returns:
        A function that undoes it.
    """
    undo_former = _undo_of.pop(provider, None)
    if undo_former is not None:
        undo_former()
    counting = processor or MeteringSpanProcessor()
    root = provider.sampler
    metering = MeteringSampler(root, kinds)
    provider.add_span_processor(counting)
    _set_sampler(provider, metering)
    # Weakly: the provider must not keep itself alive through this function.
    held = weakref.ref(provider)

    def undo() -> None:
        counting.detach()
        metered = held()
        if metered is not None and metered.sampler is metering:
            _set_sampler(metered, root)

    _undo_of[provider] = undo
    return undo


def _set_sampler(provider: TracerProvider, sampler: Sampler) -> None:
    provider.sampler = sampler
    # A tracer keeps the sampler that was there when it was made, and instrumentations make theirs early.
    for tracer in list(getattr(provider, "_tracers", {}).values()):
        tracer.sampler = sampler


def _forgetter(at_work: dict[_SpanKey, _Started]) -> Callable[[weakref.ref[Span]], None]:
    """For spans that are never ended."""

    def forget(started: weakref.ref[Span]) -> None:
        if isinstance(started, _Started):
            at_work.pop(started.key, None)

    return forget


def _is_claimed(meter: str, started: _Started | None) -> bool:
    if meter in current.get().claimed:
        return True
    if started is None:
        return False
    live = started()
    return (
        meter in started.claimed
        or meter in started.holder.claimed
        or (live is not None and meter in claimed_by(live))
    )


def _attributes_of(span: ReadableSpan) -> Mapping[str, object]:
    attributes = span.attributes
    # The copy is a dict, with look-ups that cost a tenth.
    return attributes.copy() if isinstance(attributes, MappingProxyType) else attributes or {}
