"""Spans of the real SDK: what of them is usage, under every way of sampling."""

import gc
from collections.abc import Callable, Iterator, Sequence

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_OFF,
    DEFAULT_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
)
from opentelemetry.util.types import Attributes

from otel_metering import set_tenant, stats, tenant
from otel_metering._cells import CellBook
from otel_metering._context import Holder, claim_span, current
from otel_metering._quantity import NANOS_PER_UNIT
from otel_metering._record import sink
from otel_metering.spans import MeteringSampler, MeteringSpanProcessor, meter_spans

SAMPLERS = [
    ALWAYS_ON,
    ALWAYS_OFF,
    DEFAULT_ON,
    DEFAULT_OFF,
    TraceIdRatioBased(0.0),
    TraceIdRatioBased(0.5),
    TraceIdRatioBased(1.0),
    ParentBased(TraceIdRatioBased(0.0)),
]

SAMPLED, UNSAMPLED = (
    trace.set_span_in_context(
        NonRecordingSpan(SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(flags))),
        Context(),
    )
    for flags in (1, 0)
)

Usage = dict[tuple[object, ...], int]


@pytest.fixture
def used() -> Iterator[Callable[..., Usage]]:
    """What was counted: (meter, tenant, values of the named dimensions...) -> quantity."""
    book = CellBook(max_series_per_meter=1000, on_new_thread=lambda: None)
    sink.open(book)

    def read(*names: str) -> Usage:
        found: Usage = {}
        for series, nanos in book.read().deltas.items():
            dimensions = {name: value for name, _, value in series.dimensions}
            key = series.meter, series.tenant, *(dimensions.get(name) for name in names)
            assert nanos % NANOS_PER_UNIT == 0
            found[key] = found.get(key, 0) + nanos // NANOS_PER_UNIT
        return found

    yield read
    sink.close()


def tracer_of(sampler: Sampler = ALWAYS_ON, **options: object) -> Tracer:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    meter_spans(provider, MeteringSpanProcessor(**options))  # type: ignore[arg-type]
    return provider.get_tracer("test")


def serve(tracer: Tracer, context: Context | None = None, **attributes: str | int) -> None:
    tracer.start_span("GET /", context, SpanKind.SERVER, attributes=named(attributes)).end()


def named(attributes: dict[str, str | int]) -> dict[str, str | int]:
    return {name.replace("__", "."): value for name, value in attributes.items()}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda one: one.get_description()[:40])
@pytest.mark.parametrize(
    "context", [None, SAMPLED, UNSAMPLED], ids=["root", "sampled", "unsampled"]
)
def test_each_request_counts_with_what_it_started_with_whatever_the_sampling(
    used: Callable[..., Usage], sampler: Sampler, context: Context | None
) -> None:
    tracer = tracer_of(sampler)

    for _ in range(20):
        serve(tracer, context, tenant__id="acme", http__route="/orders/{id}")

    assert used("http.route") == {("server.requests", "acme", "/orders/{id}"): 20}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda one: one.get_description()[:40])
@pytest.mark.parametrize(
    "context", [None, SAMPLED, UNSAMPLED], ids=["root", "sampled", "unsampled"]
)
def test_what_is_exported_stays_as_without_metering(
    sampler: Sampler, context: Context | None
) -> None:
    def exported(*, is_metered: bool) -> list[tuple[str, bool]]:
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False, id_generator=Ids())
        memory = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(memory))
        if is_metered:
            meter_spans(provider)
        tracer = provider.get_tracer("test")
        seen = []
        for number in range(8):
            with tracer.start_as_current_span(f"server {number}", context, SpanKind.SERVER) as span:
                seen.append((f"flag {number}", span.get_span_context().trace_flags.sampled))
                with tracer.start_as_current_span(f"inner {number}"):
                    pass
        return seen + [(span.name, True) for span in memory.get_finished_spans()]

    assert exported(is_metered=True) == exported(is_metered=False)


class Ids(IdGenerator):
    """The same ids in each run, spread over the range that ratios go by."""

    def __init__(self) -> None:
        self._count = 0

    def generate_span_id(self) -> int:
        return self.generate_trace_id() & (2**64 - 1)

    def generate_trace_id(self) -> int:
        self._count += 1
        return self._count * 0x9E3779B97F4A7C15 & (2**128 - 1)


def test_attributes_that_the_root_sampler_adds_are_kept_beside_those_given(
    used: Callable[..., Usage],
) -> None:
    class Tagging(Sampler):
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
            return SamplingResult(Decision.DROP, {"rpc.method": "Get"}, TraceState([("a", "b")]))

        def get_description(self) -> str:
            return "Tagging"

    tracer = tracer_of(Tagging())
    with tracer.start_as_current_span(
        "x", kind=SpanKind.SERVER, attributes={"rpc.service": "Shop"}
    ) as span:
        assert span.get_span_context().trace_state.get("a") == "b"

    assert used("rpc.service", "rpc.method") == {("server.requests", None, "Shop", "Get"): 1}


def test_spans_of_other_kinds_are_dropped_as_before() -> None:
    tracer = tracer_of(ALWAYS_OFF)

    for kind in (SpanKind.INTERNAL, SpanKind.CLIENT, SpanKind.PRODUCER):
        assert not tracer.start_span("x", kind=kind, attributes={"a": "b"}).is_recording()


def test_only_requests_and_messages_count(used: Callable[..., Usage]) -> None:
    tracer = tracer_of()

    for kind in SpanKind:
        tracer.start_span("x", kind=kind).end()

    assert used() == {("server.requests", None): 2}


def test_old_and_new_names_of_attributes_are_one_series(used: Callable[..., Usage]) -> None:
    tracer = tracer_of()

    serve(tracer, http__method="GET", http__status_code=204)
    serve(tracer, http__request__method="GET", http__response__status_code=200)
    serve(tracer, http__request__method="GET", http__response__status_code=999)

    assert used("http.request.method", "http.response.status_class", "http.status_code") == {
        ("server.requests", None, "GET", "2xx", None): 2,
        ("server.requests", None, "GET", None, None): 1,
    }


def test_the_attributes_that_become_dimensions_can_be_chosen(used: Callable[..., Usage]) -> None:
    tracer = tracer_of(attributes=["http.response.status_code", "region"])

    serve(tracer, http__status_code=204, region="eu", http__route="/")

    assert used("http.response.status_code", "region", "http.route") == {
        ("server.requests", None, 204, "eu", None): 1
    }


def test_the_spans_own_tenant_comes_first_then_its_request_then_trusted_baggage(
    used: Callable[..., Usage],
) -> None:
    sent = baggage.set_baggage("tenant.id", "from_baggage", Context())
    trusting = tracer_of(trust_baggage=True)

    with tenant("holder"):
        serve(trusting, sent, tenant__id="own")
        serve(trusting, sent)
    serve(trusting, sent)
    serve(tracer_of(), sent)

    assert used() == {
        ("server.requests", "own"): 1,
        ("server.requests", "holder"): 1,
        ("server.requests", "from_baggage"): 1,
        ("server.requests", None): 1,
    }


def test_a_tenant_found_out_while_the_span_is_at_work_counts(used: Callable[..., Usage]) -> None:
    tracer = tracer_of()

    with tenant("gateway"):
        span = tracer.start_span("x", kind=SpanKind.SERVER)
        set_tenant("authenticated")
    span.end()

    assert used() == {("server.requests", "authenticated"): 1}


@pytest.mark.parametrize("wrong", ["", "two words", "x" * 129])
def test_a_tenant_that_is_none_is_left_out_and_reported(
    used: Callable[..., Usage], wrong: str
) -> None:
    before = stats().ignored_tenants

    serve(tracer_of(), tenant__id=wrong)

    assert used() == {("server.requests", None): 1}
    assert stats().ignored_tenants == before + 1


def test_what_a_middleware_claimed_is_left_to_it(used: Callable[..., Usage]) -> None:
    tracer = tracer_of()

    by_span = tracer.start_span("x", kind=SpanKind.SERVER)
    claim_span(by_span, frozenset({"server.requests"}))
    by_span.end()
    holder = Holder("acme")
    holder.claimed = frozenset({"server.requests"})
    token = current.set(holder)
    serve(tracer)
    started_inside = tracer.start_span("x", kind=SpanKind.SERVER)
    current.reset(token)
    holder.claimed = frozenset()  # the middleware is done before the span is
    started_inside.end()

    assert used() == {}


def test_a_claim_of_another_meter_or_another_span_changes_nothing(
    used: Callable[..., Usage],
) -> None:
    tracer = tracer_of()
    other = tracer.start_span("other", kind=SpanKind.SERVER)
    claim_span(other, frozenset({"server.requests"}))

    span = tracer.start_span("x", kind=SpanKind.SERVER)
    claim_span(span, frozenset({"http.bytes"}))
    span.end()

    assert used() == {("server.requests", None): 1}


def test_tracers_made_earlier_are_metered_and_undoing_it_restores_all(
    used: Callable[..., Usage],
) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    tracer = provider.get_tracer("early")

    undo = meter_spans(provider)
    serve(tracer)
    undo()
    serve(tracer)

    assert used() == {("server.requests", None): 1}
    assert provider.sampler is ALWAYS_OFF
    assert not tracer.start_span("x", kind=SpanKind.SERVER).is_recording()


def test_metering_a_provider_twice_counts_once_by_the_later_call(
    used: Callable[..., Usage],
) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    meter_spans(provider)
    undo_first = meter_spans(provider)
    meter_spans(provider, MeteringSpanProcessor("mine"))

    serve(provider.get_tracer("test"))
    undo_first()
    serve(provider.get_tracer("test"))

    assert used() == {("mine", None): 2}


def test_the_newest_name_of_an_attribute_wins(used: Callable[..., Usage]) -> None:
    serve(tracer_of(), http__request__method="GET", http__method="OLD")

    assert used("http.request.method") == {("server.requests", None, "GET"): 1}


def test_spans_that_are_never_ended_are_forgotten() -> None:
    processor = MeteringSpanProcessor()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("test")

    spans = [tracer.start_span("x", kind=SpanKind.SERVER) for _ in range(10)]
    spans[0].end()
    assert len(processor._started) == 9
    del spans
    gc.collect()

    assert processor._started == {}


def test_the_description_says_both_samplers() -> None:
    assert MeteringSampler(ALWAYS_OFF).get_description() == "MeteringSampler{AlwaysOffSampler}"


CHAT = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o"}


def call_model(tracer: Tracer, start: dict[str, str], end: dict[str, object]) -> None:
    span = tracer.start_span("chat gpt-4o", kind=SpanKind.CLIENT, attributes=start)
    for name, value in end.items():
        span.set_attribute(name, value)  # type: ignore[arg-type]
    span.end()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda one: one.get_description()[:40])
def test_tokens_count_by_type_whatever_the_sampling(
    used: Callable[..., Usage], sampler: Sampler
) -> None:
    tracer = tracer_of(sampler)

    with tenant("acme"):
        for _ in range(10):
            call_model(
                tracer,
                {**CHAT, "gen_ai.system": "openai"},
                {"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 3},
            )

    assert used("gen_ai.token.type", "gen_ai.request.model", "gen_ai.provider.name") == {
        ("gen_ai.tokens", "acme", "input", "gpt-4o", "openai"): 70,
        ("gen_ai.tokens", "acme", "output", "gpt-4o", "openai"): 30,
    }


def test_parts_of_input_and_output_have_meters_of_their_own(used: Callable[..., Usage]) -> None:
    call_model(
        tracer_of(),
        CHAT,
        {
            "gen_ai.usage.input_tokens": 100,
            "gen_ai.usage.cache_read.input_tokens": 60,
            "gen_ai.usage.cache_creation.input_tokens": 30,
            "gen_ai.usage.output_tokens": 50,
            "gen_ai.usage.reasoning.output_tokens": 20,
        },
    )

    assert used("gen_ai.token.type") == {
        ("gen_ai.tokens", None, "input"): 100,
        ("gen_ai.tokens.cache_read", None, "input"): 60,
        ("gen_ai.tokens.cache_creation", None, "input"): 30,
        ("gen_ai.tokens", None, "output"): 50,
        ("gen_ai.tokens.reasoning", None, "output"): 20,
    }


def test_deprecated_names_of_token_counts_are_read(used: Callable[..., Usage]) -> None:
    call_model(
        tracer_of(), {}, {"gen_ai.usage.prompt_tokens": 7, "gen_ai.usage.completion_tokens": 3}
    )

    assert used("gen_ai.token.type") == {
        ("gen_ai.tokens", None, "input"): 7,
        ("gen_ai.tokens", None, "output"): 3,
    }


def test_the_sum_that_an_agents_span_says_is_not_counted_again(used: Callable[..., Usage]) -> None:
    tracer = tracer_of()
    before = stats().uncounted_tokens
    agent = {"gen_ai.operation.name": "invoke_agent"}

    call_model(tracer, CHAT, {"gen_ai.usage.input_tokens": 7})
    call_model(tracer, agent, {"gen_ai.usage.input_tokens": 7})

    assert used() == {("gen_ai.tokens", None): 7}
    assert stats().uncounted_tokens == before


def test_tokens_that_are_not_counted_are_reported(used: Callable[..., Usage]) -> None:
    tracer = tracer_of()
    before = stats().uncounted_tokens

    call_model(tracer, CHAT, {})
    call_model(tracer, CHAT, {"gen_ai.usage.input_tokens": 0, "gen_ai.usage.output_tokens": 0})
    call_model(tracer, {"gen_ai.operation.name": "own_operation"}, {"gen_ai.usage.input_tokens": 5})
    failed = tracer.start_span("chat", kind=SpanKind.CLIENT, attributes=CHAT)
    failed.set_status(Status(StatusCode.ERROR))
    failed.end()

    assert used() == {}
    assert stats().uncounted_tokens == before + 3


def test_tokens_of_a_stream_belong_to_who_called_not_to_who_reads(
    used: Callable[..., Usage],
) -> None:
    tracer = tracer_of(ALWAYS_OFF)

    with tenant("caller"):
        span = tracer.start_span("chat", kind=SpanKind.CLIENT, attributes=CHAT)
    with tenant("reader"):
        span.set_attribute("gen_ai.usage.input_tokens", 5)
        span.end()

    assert used() == {("gen_ai.tokens", "caller"): 5}


def test_what_is_not_to_be_counted_is_not(used: Callable[..., Usage]) -> None:
    no_requests = tracer_of(requests=None)
    no_tokens = tracer_of(tokens=None)

    for tracer in (no_requests, no_tokens):
        serve(tracer)
        call_model(tracer, CHAT, {"gen_ai.usage.input_tokens": 5})

    assert used() == {("gen_ai.tokens", None): 5, ("server.requests", None): 1}


def test_a_fault_of_counting_does_not_reach_the_span(
    used: Callable[..., Usage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    before = stats().rejected_usage

    call_model(tracer_of(), CHAT, {"gen_ai.usage.input_tokens": -5})

    assert used() == {}
    assert stats().rejected_usage == before + 1


def test_a_span_read_from_elsewhere_counts_without_having_been_started_here(
    used: Callable[..., Usage],
) -> None:
    context = SpanContext(1, 2, is_remote=False)

    MeteringSpanProcessor().on_end(ReadableSpan("x", context=context, kind=SpanKind.SERVER))

    assert used() == {("server.requests", None): 1}
