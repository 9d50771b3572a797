"""Whether a reader's statement may run: decided on what the engine itself understands by it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from query_api.clickhouse.errors import ACCESS_DENIED, READONLY, ClickHouseError, NotReadableError
from query_api.clickhouse.policy import FILTERED, READABLE, TABLE_FUNCTIONS, Functions
from query_api.clickhouse.tokens import Kind, Token
from query_api.clickhouse.tree import Node
from receiver.store.tables import DATABASE

_NODES: Final = frozenset(
    {
        *("ArrayJoin", "Asterisk", "ColumnsExceptTransformer", "ColumnsListMatcher"),
        *("ColumnsRegexpMatcher", "ColumnsReplaceTransformer", "ColumnsTransformerList"),
        *("ColumnsReplaceTransformer::Replacement", "ExpressionList", "Function", "Identifier"),
        *("InterpolateElement", "Literal", "OrderByElement", "QualifiedAsterisk"),
        *("SampleRatio", "SelectIntersectExceptQuery", "SelectQuery", "SelectWithUnionQuery"),
        *("Subquery", "TableExpression", "TableIdentifier", "TableJoin", "TablesInSelectQuery"),
        *("TablesInSelectQueryElement", "WindowDefinition", "WindowListElement", "WithElement"),
    }
)

_MANY_COLUMNS: Final = frozenset(
    {"Asterisk", "QualifiedAsterisk", "ColumnsListMatcher", "ColumnsRegexpMatcher"}
)

_BEGINNINGS: Final = frozenset({"SELECT", "WITH", "SHOW", "DESCRIBE", "EXISTS"})

_LISTS: Final = frozenset({"DATABASES", "TABLES", "COLUMNS"})

_IN: Final = re.compile(r"(global)?(not)?(null)?in(ignoreset)?", re.I)
"""Functions whose right side may be the name of a table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a statement that may run goes by.

    Attributes:
        tables: Those that it reads, qualified.
        assumed: Names that are taken for something else than tables: there must be no tables of these names.
    """

    tables: frozenset[str] = frozenset()
    assumed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Whose statement it is.

    Attributes:
        functions: Those that may be called.
        hidden: Table -> columns that may not be named there.
        is_bound: Whether some rows are not for this reader.
    """

    functions: Functions
    hidden: Mapping[str, frozenset[str]]
    is_bound: bool


def check_tokens(tokens: Sequence[Token], reader: Reader) -> None:
    """Refuse what shows in the text alone; it is done before the engine is asked for the tree.

    Raises:
        ClickHouseError: It writes a file, calls what it may not call, or takes a name that filters go by.
    """
    if not tokens or not (tokens[0].is_word(*_BEGINNINGS) or tokens[0].text == "("):
        raise ClickHouseError(
            READONLY, "Cannot execute query in readonly mode: only questions are taken, as SELECT"
        )
    for at, token in enumerate(tokens):
        following = tokens[at + 1] if at + 1 < len(tokens) else None
        if token.is_word("INTO") and following is not None and following.is_word("OUTFILE"):
            raise ClickHouseError(READONLY, "INTO OUTFILE is not taken over HTTP")
        if token.is_word("PREWHERE") and reader.is_bound:
            raise ClickHouseError(
                ACCESS_DENIED, "PREWHERE is not for a key that is bound to a tenant; use WHERE"
            )
        if token.is_word("APPLY", "PARALLEL"):
            raise ClickHouseError(ACCESS_DENIED, f"{token.text} is not offered here")
        if token.kind is Kind.NAME and token.text.lower() in FILTERED:
            raise ClickHouseError(ACCESS_DENIED, f"Nothing may be called `{token.text}`")
        if token.kind is Kind.PARAMETER and "Identifier" in token.text:
            raise ClickHouseError(
                ACCESS_DENIED, f"{token.text} is not offered here; write the name"
            )
        if token.is_called and token.is_name:
            _check_function(token.text, reader.functions)


def check_tree(root: Node, tokens: Sequence[Token], reader: Reader) -> Verdict:
    """Refuse what a reader may not read.

    Raises:
        ClickHouseError: It is no question, or asks for what a reader may not see.
    """
    if root.kind in ("ShowTables", "ShowColumns"):
        _check_list(tokens)
        return Verdict()
    if root.kind in ("ExistsTableQuery", "ShowCreateTableQuery"):
        name = ".".join(child.text for child in root.children)
        _check_table(name)
        return Verdict()
    if root.kind == "DescribeQuery":
        _check_kinds(root.children)
    elif root.kind == "SelectWithUnionQuery":
        _check_kinds([root])
        if len(root.children) != 1:
            raise ClickHouseError(READONLY, "INTO OUTFILE is not taken over HTTP")
    else:
        raise ClickHouseError(
            READONLY, "Cannot execute query in readonly mode: only SELECT is taken"
        )
    assumed = set()
    read = set()
    declared = _declared(tokens)
    for name in _tables(root, reader.functions):
        if _qualified(name) in READABLE:
            read.add(_qualified(name))
        elif "." in name or name not in declared:
            _check_table(name)
        else:
            assumed.add(name)
    if root.kind == "SelectWithUnionQuery":
        _check_columns(root, tokens, read, reader.hidden)
    return Verdict(tables=frozenset(read), assumed=frozenset(assumed))


def _check_kinds(nodes: Sequence[Node]) -> None:
    for root in nodes:
        for node in root.walk():
            if node.kind == "Set":
                raise ClickHouseError(
                    READONLY,
                    "Cannot modify settings in readonly mode, but at the end of the statement",
                )
            if node.kind not in _NODES:
                raise ClickHouseError(ACCESS_DENIED, f"{node.kind} is not offered here")


def _tables(root: Node, functions: Functions) -> Iterator[str]:
    """The name of everything that is read from; checks functions on the way."""
    for node in root.walk():
        if node.kind == "TableIdentifier":
            yield node.text
        elif node.kind == "TableExpression":
            for child in node.children:
                if child.kind == "Function" and child.text not in TABLE_FUNCTIONS:
                    raise ClickHouseError(
                        ACCESS_DENIED, f"Not enough privileges: table function {child.text}"
                    )
        elif node.kind == "Function":
            _check_function(node.text, functions)
            if _IN.fullmatch(node.text):
                yield from _right_side(node)


def _right_side(function: Node) -> Iterator[str]:
    """What IN looks into, if that may be a table."""
    arguments = function.children[0].children if function.children else []
    for argument in arguments[1:]:
        if argument.kind == "Identifier":
            yield argument.text


def _check_function(name: str, functions: Functions) -> None:
    if name not in TABLE_FUNCTIONS and not functions.allows(name):
        raise ClickHouseError(ACCESS_DENIED, f"Not enough privileges: function {name}")


def _check_table(name: str) -> None:
    if _qualified(name) not in READABLE:
        raise NotReadableError(_qualified(name))


def _declared(tokens: Sequence[Token]) -> frozenset[str]:
    """The names that the statement itself gives to something."""
    found = set()
    for at, token in enumerate(tokens):
        if token.is_name:
            following = at + 1 < len(tokens)
            if (at and tokens[at - 1].is_word("AS")) or (
                following and (tokens[at + 1].is_word("AS") or token.is_called)
            ):
                found.add(token.text)
    return frozenset(found)


def _check_columns(
    root: Node, tokens: Sequence[Token], read: set[str], hidden: Mapping[str, frozenset[str]]
) -> None:
    """Where a table has columns that a reader may not see, every column has to be named."""
    secret = {table: hidden[table] for table in read if table in hidden}
    if not secret:
        return
    names = frozenset[str]().union(*secret.values())
    for token in tokens:
        if token.is_name and token.text in names:
            raise ClickHouseError(ACCESS_DENIED, f"Not enough privileges: column {token.text}")
    shown = ", ".join(sorted(secret))
    counted = {
        id(child)
        for node in root.walk()
        if node.kind == "Function" and node.text.lower() == "count"
        for child in node.children
    }
    for node in root.walk():
        if node.kind == "Function" and _IN.fullmatch(node.text):
            _check_not_whole(node, secret)
        for child in node.children:
            if child.kind in _MANY_COLUMNS and id(node) not in counted:
                raise ClickHouseError(
                    ACCESS_DENIED,
                    f"Not enough privileges: name the columns of {shown}; some are not to be read",
                )
            if node.kind == "TableExpression" and child.kind == "ExpressionList":
                raise ClickHouseError(ACCESS_DENIED, f"The columns of {shown} cannot be renamed")


def _check_not_whole(function: Node, secret: Mapping[str, frozenset[str]]) -> None:
    for name in _right_side(function):
        if _qualified(name) in secret:
            raise ClickHouseError(ACCESS_DENIED, f"IN {name}: name the columns of {name}")


def _qualified(name: str) -> str:
    return name if "." in name else f"{DATABASE}.{name}"


def _check_list(tokens: Sequence[Token]) -> None:
    """SHOW TABLES FROM metering LIKE 'x' LIMIT 3, and the like."""
    rest = list(tokens[1:])
    while rest and rest[0].is_word("FULL", "EXTENDED"):
        rest.pop(0)
    if not rest or not rest[0].is_word(*_LISTS):
        raise ClickHouseError(ACCESS_DENIED, "SHOW lists databases, tables and columns here")
    rest.pop(0)
    words = {"FROM", "NOT", "LIKE", "ILIKE", "LIMIT"}
    for at, token in enumerate(rest):
        if token.is_word(*words) or token.kind in (Kind.TEXT, Kind.NUMBER) or token.text == ".":
            continue
        if not (
            token.is_name and at and (rest[at - 1].is_word("FROM") or rest[at - 1].text == ".")
        ):
            raise ClickHouseError(ACCESS_DENIED, f"SHOW with {token.text} is not offered here")
