"""What attributes of spans mean: OpenTelemetry semantic conventions, under their new and old names."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from opentelemetry.util.types import Attributes

Sources = Sequence[tuple[str, str]]
"""(the name to look for, the attribute's newest name), newest first."""

METHOD: Final = "http.request.method"
ROUTE: Final = "http.route"
STATUS_CLASS: Final = "http.response.status_class"
"""Not a semantic convention: "2xx" of the status 204."""

REQUEST_ATTRIBUTES: Final = (
    METHOD,
    ROUTE,
    STATUS_CLASS,
    "rpc.service",
    "rpc.method",
    "messaging.system",
    "messaging.destination.name",
)
"""Attributes of a request's span that become dimensions, if it has them."""

INFERENCES: Final = frozenset({"chat", "embeddings", "generate_content", "text_completion"})
"""Values of `gen_ai.operation.name` that are one call of a model (GenAI semantic conventions)."""

_OLD_NAMES: Final = {
    METHOD: ("http.method",),
    "http.response.status_code": ("http.status_code",),
}
"""Semantic conventions, migration guide from 1.20 to 1.23."""

_STATUS_CODES: Final = ("http.response.status_code", "http.status_code")
_STATUS_CLASSES: Final = {code: f"{code // 100}xx" for code in range(100, 600)}

OPERATION: Final = "gen_ai.operation.name"
_GENAI_MARKS: Final = frozenset(
    {OPERATION, "gen_ai.provider.name", "gen_ai.system", "gen_ai.request.model"}
)

TOTALS: Final = frozenset(
    {
        "create_agent",
        "execute_tool",
        "fetch_response",
        "invoke_agent",
        "invoke_workflow",
        "retrieval",
    }
)
"""Operations whose token counts, if any, are those of calls that have spans of their own."""


class Tokens(NamedTuple):
    """One count of tokens.

    Attributes:
        part: Ending of the meter's name. Tokens from a cache are input tokens too, and those of
            reasoning output tokens, so that they must not be added to them.
        type: Value of `gen_ai.token.type`.
        attributes: Where it is, newest name first.
    """

    part: str
    type: str
    attributes: tuple[str, ...]


TOKENS: Final = (
    Tokens("", "input", ("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens")),
    Tokens("", "output", ("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens")),
    Tokens(".cache_read", "input", ("gen_ai.usage.cache_read.input_tokens",)),
    Tokens(
        ".cache_creation",
        "input",
        ("gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_write.input_tokens"),
    ),
    Tokens(".reasoning", "output", ("gen_ai.usage.reasoning.output_tokens",)),
)

MODEL_SOURCES: Final = (
    ("gen_ai.request.model", "gen_ai.request.model"),
    ("gen_ai.response.model", "gen_ai.response.model"),
    ("gen_ai.provider.name", "gen_ai.provider.name"),
    ("gen_ai.system", "gen_ai.provider.name"),
    (OPERATION, OPERATION),
)

_TOKEN_NAMES: Final = frozenset({OPERATION, *(name for one in TOKENS for name in one.attributes)})


def may_have_tokens(attributes: Mapping[str, object]) -> bool:
    """Whether a span that ends with these has tokens, or should have."""
    return not _TOKEN_NAMES.isdisjoint(attributes)


def is_of_model(attributes: Attributes) -> bool:
    """Whether a span that starts with these is one of the GenAI semantic conventions."""
    return attributes is not None and not _GENAI_MARKS.isdisjoint(attributes)


def request_sources(names: Sequence[str]) -> Sources:
    """Where a span may have the attributes `names`."""
    return [
        (source, name)
        for name in names
        if name != STATUS_CLASS
        for source in (name, *_OLD_NAMES.get(name, ()))
    ]


def first(names: Sequence[str], attributes: Mapping[str, object]) -> object:
    """The value of the first of `names` that has one, else None."""
    for name in names:
        value = attributes.get(name)
        if value is not None:
            return value
    return None


def named(sources: Sources, attributes: Mapping[str, object]) -> dict[str, object]:
    """The attributes among `attributes`, under their new names."""
    found: dict[str, object] = {}
    for source, name in sources:
        value = attributes.get(source)
        if value is not None and name not in found:
            found[name] = value
    return found


def status_class(attributes: Mapping[str, object]) -> str | None:
    """Say "2xx" of a span with the status 204; None: it has no status."""
    code = first(_STATUS_CODES, attributes)
    return _STATUS_CLASSES.get(code) if isinstance(code, int) else None
