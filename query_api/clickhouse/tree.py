"""The syntax tree that `EXPLAIN AST` prints: a node in a line, a space of indent for each level."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from query_api.clickhouse.errors import SYNTAX_ERROR, ClickHouseError

_CHILDREN: Final = re.compile(r" \(children (\d+)\)$")
_ALIAS: Final = " (alias "


@dataclass(slots=True)
class Node:
    """One node.

    Attributes:
        kind: Its type, as Function.
        text: What follows in its line, as the name of the function; without its alias.
        alias: What it is called from here on; empty: nothing.
        children: The nodes below it.
    """

    kind: str
    text: str
    alias: str
    children: list["Node"] = field(default_factory=list)

    def walk(self) -> Iterator["Node"]:
        """It, and every node below it."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(reversed(node.children))


def parse_tree(text: str) -> Node:
    """The root of a printed tree.

    Raises:
        ClickHouseError: A line does not fit: the tree is not what was printed.
    """
    path: list[tuple[Node, int]] = []
    root: Node | None = None
    for line in text.rstrip("\n").split("\n"):
        depth = len(line) - len(line.lstrip(" "))
        node, expected = _node(line[depth:])
        while len(path) > depth:
            _check_complete(*path.pop())
        if len(path) != depth or (root is not None and not depth):
            raise ClickHouseError(SYNTAX_ERROR, "The statement cannot be read")
        if path:
            path[-1][0].children.append(node)
        else:
            root = node
        path.append((node, expected))
    while path:
        _check_complete(*path.pop())
    assert root is not None  # noqa: S101 - a text has a line
    return root


def _node(line: str) -> tuple[Node, int]:
    expected = 0
    found = _CHILDREN.search(line)
    if found:
        line, expected = line[: found.start()], int(found[1])
    alias = ""
    begin = line.find(_ALIAS) if line.endswith(")") else -1
    if begin >= 0:
        line, alias = line[:begin], line[begin + len(_ALIAS) : -1]
    kind, _, text = line.partition(" ")
    return Node(kind, text, alias), expected


def _check_complete(node: Node, expected: int) -> None:
    # A name that looks like a line of the tree would show here, if the tokens had let one pass.
    if len(node.children) != expected:
        raise ClickHouseError(SYNTAX_ERROR, "The statement cannot be read")
