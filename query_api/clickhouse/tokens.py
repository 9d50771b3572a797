"""Canonical SQL, as `formatQuerySingleLine` prints it, in tokens.

It has no comments, one kind of quotes for texts and one for names, and no space between a function and its arguments.
What does not look like that is refused, so nothing is guessed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from query_api.clickhouse.errors import READONLY, SYNTAX_ERROR, ClickHouseError

_TOKEN: Final = re.compile(
    r"""(?P<space>[ \n]+)
    |(?P<text>'(?:[^'\\]|\\.)*')
    |(?P<quoted>`(?:[^`\\]|\\.)*`)
    |(?P<parameter>\{[A-Za-z_]\w*:[^{}]*\})
    |(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?)
    |(?P<word>[A-Za-z_]\w*)
    |(?P<sign>[^\w\s'`"\\#])""",
    re.X | re.S | re.A,
)

_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f\\]")

_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "0": "\0"}


class Kind(Enum):
    """What a token is."""

    TEXT = auto()
    """'a string'."""
    NAME = auto()
    """A name in backticks."""
    WORD = auto()
    """A keyword, or a name without quotes."""
    PARAMETER = auto()
    """{name:Type}."""
    NUMBER = auto()
    SIGN = auto()


_KINDS: Final = {
    "text": Kind.TEXT,
    "quoted": Kind.NAME,
    "parameter": Kind.PARAMETER,
    "number": Kind.NUMBER,
    "word": Kind.WORD,
    "sign": Kind.SIGN,
}


@dataclass(frozen=True, slots=True)
class Token:
    """One token.

    Attributes:
        kind: What it is.
        text: A name without its quotes; anything else as it is written.
        start: Where it begins.
        is_called: Whether an opening parenthesis follows at once, as after the name of a function.
    """

    kind: Kind
    text: str
    start: int
    is_called: bool

    def is_word(self, *words: str) -> bool:
        """Whether it is one of these keywords, in capitals."""
        return self.kind is Kind.WORD and self.text in words

    @property
    def is_name(self) -> bool:
        """Whether it may be a name."""
        return self.kind in (Kind.NAME, Kind.WORD)


def tokens_of(sql: str) -> list[Token]:
    """The tokens of a canonical statement.

    Raises:
        ClickHouseError: It has a character that canonical SQL does not have, or an unprintable one in a name.
    """
    found: list[Token] = []
    at = 0
    while at < len(sql):
        match = _TOKEN.match(sql, at)
        if match is None or match.lastgroup is None:
            raise ClickHouseError(SYNTAX_ERROR, f"Syntax error: unexpected {sql[at]!r} at {at}")
        if match.lastgroup != "space":
            found.append(_token(match, sql))
        at = match.end()
    return found


def _token(match: re.Match[str], sql: str) -> Token:
    kind, text = _KINDS[str(match.lastgroup)], match[0]
    if kind is Kind.NAME:
        text = text[1:-1]
        if _UNPRINTABLE.search(text):
            raise ClickHouseError(
                READONLY, f"A name may not have a control character or \\: {text!r}"
            )
    return Token(kind, text, match.start(), sql.startswith("(", match.end()))


def depths(tokens: Sequence[Token]) -> list[int]:
    """How many brackets each token stands in."""
    found, depth = [], 0
    for token in tokens:
        if token.kind is Kind.SIGN and token.text in ")]}":
            depth -= 1
        found.append(depth)
        if token.kind is Kind.SIGN and token.text in "([{":
            depth += 1
    return found


def unquote(token: Token) -> str:
    """The value of a text, a number or a bare word.

    Raises:
        ClickHouseError: It is none.
    """
    if token.kind is Kind.TEXT:
        return re.sub(
            r"\\(.)", lambda match: _ESCAPES.get(match[1], match[1]), token.text[1:-1], flags=re.S
        )
    if token.kind in (Kind.NUMBER, Kind.WORD):
        return token.text
    raise ClickHouseError(READONLY, f"A setting is a number or a text, and not {token.text!r}")


def quote(text: str) -> str:
    """A text as a literal of SQL."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def escape(text: str) -> str:
    """A text as the format TabSeparated has it, which parameters are written in."""
    return (
        text.replace("\\", "\\\\")
        .replace("\t", "\\t")
        .replace("\n", "\\n")
        .replace("\r", "\\r")
        .replace("\0", "\\0")
    )
