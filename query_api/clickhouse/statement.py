"""A statement in parts: what it asks, its settings, the format of its answer; or an INSERT and its data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from query_api.clickhouse.errors import READONLY, SYNTAX_ERROR, ClickHouseError
from query_api.clickhouse.tokens import Kind, Token, depths, tokens_of, unquote

_SKIPPED: Final = r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/|\#!?\ [^\n]*(?:\n|$))"
_INSERT: Final = re.compile(rf"{_SKIPPED}*INSERT{_SKIPPED}+INTO\b", re.I | re.S)
_INSERT_TOKEN: Final = re.compile(
    rf"""(?P<skipped>{_SKIPPED}+)
    |(?P<quoted>'(?:[^'\\]|\\.|'')*'|`(?:[^`\\]|\\.|``)*`|"(?:[^"\\]|\\.|"")*")
    |(?P<word>\w+)
    |(?P<sign>.)""",
    re.X | re.S,
)
_LINE_END: Final = re.compile(r"[ \t]*\r?\n?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A statement that may have an answer.

    Attributes:
        core: Canonical SQL, without what follows.
        tokens: Of `core`.
        settings: Of its SETTINGS clause.
        format: Of its FORMAT clause; empty: it has none.
    """

    core: str
    tokens: Sequence[Token]
    settings: dict[str, str]
    format: str


def split_question(canonical: str) -> Question:
    """Take the clauses FORMAT and SETTINGS from the end of a canonical statement.

    Raises:
        ClickHouseError: It has what canonical SQL does not have, or a setting that is no plain value.
    """
    tokens = tokens_of(canonical)
    levels = depths(tokens)
    format_name, end = "", len(tokens)
    settings: dict[str, str] = {}
    for _ in range(2):
        begin = _last(tokens[:end], levels, "FORMAT", "SETTINGS")
        if begin is None:
            break
        clause = tokens[begin + 1 : end]
        if tokens[begin].text == "FORMAT" and not format_name:
            if len(clause) != 1 or not clause[0].is_name:
                break
            format_name = clause[0].text
        elif tokens[begin].text == "SETTINGS" and not settings:
            found = _settings(clause)
            if found is None:
                break
            settings = found
        end = begin
    core = canonical[: tokens[end].start] if end < len(tokens) else canonical
    return Question(core=core.rstrip(), tokens=tokens[:end], settings=settings, format=format_name)


def _last(tokens: Sequence[Token], levels: Sequence[int], *words: str) -> int | None:
    return next(
        (
            at
            for at in range(len(tokens) - 1, 0, -1)
            if levels[at] == 0 and tokens[at].is_word(*words)
        ),
        None,
    )


def _settings(tokens: Sequence[Token]) -> dict[str, str] | None:
    """Name = value, ...; None: it is something else."""
    settings: dict[str, str] = {}
    at = 0
    while at < len(tokens):
        if len(tokens) - at < 3 or not tokens[at].is_name or tokens[at + 1].text != "=":
            return None
        name, value = tokens[at].text, tokens[at + 2]
        at += 3
        if value.text == "-" and at < len(tokens):
            settings[name] = f"-{unquote(tokens[at])}"
            at += 1
        elif value.kind in (Kind.SIGN, Kind.PARAMETER, Kind.NAME):
            raise ClickHouseError(READONLY, f"Cannot modify '{name}' setting in readonly mode")
        else:
            settings[name] = unquote(value)
        if at < len(tokens) and tokens[at].text != ",":
            return None
        at += 1
    return settings or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Insert:
    """An INSERT whose data follows it.

    Attributes:
        target: Table and columns, as they were written.
        format: Of the data.
        settings: Of its SETTINGS clause, as they were written; empty: it has none.
        data: The data.
    """

    target: str
    format: str
    settings: str
    data: bytes


def split_insert(body: bytes) -> Insert | None:
    """Split an INSERT from its data; None: it is another statement, or an INSERT that has none.

    Raises:
        ClickHouseError: It inserts into a function, or from a file.
    """
    head = body[:_MAX_HEAD_BYTES].decode("utf-8", "surrogateescape")
    match = _INSERT.match(head)
    if match is None:
        return None
    at, depth, words = match.end(), 0, []
    while at < len(head):
        found = _INSERT_TOKEN.match(head, at)
        assert found is not None  # noqa: S101 - any character is a token
        at = found.end()
        depth += found.lastgroup == "sign" and {"(": 1, ")": -1}.get(found[0], 0)
        if found.lastgroup != "word" or depth:
            continue
        word = found[0].upper()
        if word in ("SELECT", "WITH"):
            return None
        if word in ("FUNCTION", "INFILE"):
            raise ClickHouseError(SYNTAX_ERROR, f"INSERT with {word} is not taken over HTTP")
        words.append((word, found.start(), at))
        if word in ("FORMAT", "VALUES"):
            return _insert(body, head, match.end(), words)
    raise ClickHouseError(SYNTAX_ERROR, "Syntax error: INSERT has no FORMAT, VALUES or SELECT")


_MAX_HEAD_BYTES: Final = 1 << 20


def _insert(body: bytes, head: str, begin: int, words: Sequence[tuple[str, int, int]]) -> Insert:
    word, start, end = words[-1]
    name = "Values"
    if word == "FORMAT":
        found = re.compile(rf"{_SKIPPED}*(\w+)", re.X | re.S).match(head, end)
        if found is None:
            raise ClickHouseError(SYNTAX_ERROR, "Syntax error: FORMAT has no name")
        name, end = found[1], found.end()
        line = _LINE_END.match(head, end)
        end = line.end() if line else end
    settings = next((at for each, at, _ in words if each == "SETTINGS"), None)
    clause = "" if settings is None else head[settings + len("SETTINGS") : start]
    target = head[begin : start if settings is None else settings]
    target = re.sub(rf"^{_SKIPPED}*TABLE\b", "", target, flags=re.I | re.S | re.X)
    used = len(head[:end].encode("utf-8", "surrogateescape"))
    return Insert(target=target.strip(), format=name, settings=clause.strip(), data=body[used:])
