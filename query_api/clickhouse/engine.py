"""Runs statements on the embedded engine: a reader's when they have been checked, the administrator's as they are."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from query_api.clickhouse import policy
from query_api.clickhouse.calls import Answer, Call, Limits
from query_api.clickhouse.errors import (
    NOT_IMPLEMENTED,
    READONLY,
    SYNTAX_ERROR,
    UNKNOWN_DATABASE,
    UNKNOWN_TABLE,
    ClickHouseError,
    NotReadableError,
)
from query_api.clickhouse.guard import Reader, check_tokens, check_tree
from query_api.clickhouse.native import CUSTOM_SERIALIZATION_REVISION, header, hello
from query_api.clickhouse.statement import Question, split_insert, split_question
from query_api.clickhouse.tokens import Kind, escape, quote
from query_api.clickhouse.tree import parse_tree
from receiver.store.client import LIMIT_ERRORS, EngineError, Store
from receiver.store.tables import DATABASE

DEFAULT_FORMAT: Final = "TabSeparated"
MAX_QUERY_BYTES: Final = 256 * 1024
"""ClickHouse's own default of max_query_size."""

_HELLO: Final = "SELECT displayName(), version(), revision(), timezone()"

_DATABASES: Final = frozenset({"", DATABASE, "default"})

_QUESTIONS: Final = re.compile(r"\(*(SELECT|WITH|SHOW|DESCRIBE|EXISTS|EXPLAIN|CHECK|KILL)\b")
"""Statements of the administrator that have an answer, and take FORMAT and SETTINGS after it."""

_ALONE: Final[Mapping[str, int]] = {
    # The tenant's condition stands below every other: nothing of another tenant's rows is ever computed,
    # so that no error can tell of them.
    "optimize_move_to_prewhere": 0,
    "query_plan_optimize_prewhere": 0,
    "query_plan_merge_filters": 0,
    "query_plan_filter_push_down": 0,
    "enable_join_runtime_filters": 0,
    # Says how many rows were read.
    "output_format_write_statistics": 0,
}

_ALWAYS: Final[Mapping[str, int]] = {
    # It remembers which granules a condition has rows in, whatever other filters there were.
    "use_query_condition_cache": 0,
    "use_query_cache": 0,
    "allow_ddl": 0,
    "allow_introspection_functions": 0,
    # Last: after it, no setting can change.
    "readonly": 1,
}

_SETTINGS_TABLE: Final = frozenset({"system.settings"})

_TOLD: Final = frozenset({42, 43, 46, 47, 60, 62, 81, 115, 184, 215, 456})
"""Errors of the analysis: their words are about the statement, and never about rows."""


class Engine:
    """The embedded engine, as users of the endpoint see it. Any thread may call any method."""

    def __init__(self, readers: Store, administrators: Store, limits: Limits) -> None:
        """Reads what the engine can do.

        Args:
            readers: Runs what readers ask.
            administrators: Runs what the administrator orders.
            limits: What one statement of a reader may cost.
        """
        self._readers = readers
        self._administrators = administrators
        self._limits = limits
        found = readers.ask("SELECT displayName(), version(), timezone() FORMAT JSONCompactEachRow")
        self.display_name, self.version, self.timezone = json.loads(found)
        self.functions = policy.Functions(
            _functions(readers),
            _column(readers, "SELECT name FROM system.aggregate_function_combinators"),
        )

    def read(self, call: Call, tenant: str | None) -> Answer:
        """Run a reader's statement, if it may run.

        Args:
            call: The statement.
            tenant: The only tenant whose rows there are; None: of every tenant.

        Raises:
            ClickHouseError: It may not run, or failed.
        """
        if call.database not in _DATABASES:
            raise ClickHouseError(UNKNOWN_DATABASE, f"Database {call.database} does not exist")
        if len(call.sql) > MAX_QUERY_BYTES:
            raise ClickHouseError(
                SYNTAX_ERROR, f"Max query size exceeded ({MAX_QUERY_BYTES} bytes)"
            )
        try:
            return self._read(call, tenant)
        except NotReadableError as error:
            raise self._explained(error) from error
        except EngineError as error:
            raise _shown(error, is_bound=tenant is not None) from error

    def administrate(self, call: Call) -> Answer:
        """Run a statement of the administrator.

        Raises:
            ClickHouseError: It failed.
        """
        store, database = self._administrators, call.database or "default"
        try:
            insert = split_insert(call.sql)
            if insert is None:
                return self._order(call, database)
            if call.is_reading:
                raise ClickHouseError(
                    READONLY, "Cannot execute query in readonly mode (GET); send POST"
                )
            settings = {**_assignments(insert.settings), **call.settings}
            written = store.load(
                insert.target,
                insert.data,
                data_format=insert.format,
                settings=settings,
                database=database,
            )
            return Answer(body=b"", format="", written_rows=written)
        except EngineError as error:
            raise ClickHouseError(error.code, _plain(error)) from error

    def cancel(self, tag: str, *, is_reader: bool) -> None:
        """Let the statement of this tag end soon.

        Raises:
            UnavailableError: The engine did not answer.
        """
        (self._readers if is_reader else self._administrators).cancel(tag)

    def _read(self, call: Call, tenant: str | None) -> Answer:
        question = split_question(self._canonical(self._readers, call.sql))
        format_name = question.format or call.default_format or DEFAULT_FORMAT
        policy.check_format(format_name)
        if self._is_hello(question, call, format_name):
            return self._hello()
        reader = Reader(
            functions=self.functions,
            hidden=policy.hidden_columns(tenant),
            is_bound=tenant is not None,
        )
        check_tokens(question.tokens, reader)
        parameters = _used(question, call.parameters)
        # Without FORMAT: in a tree, that would be a part of the statement.
        printed = self._readers.ask(f"EXPLAIN AST {question.core}", parameters).decode()
        tree = parse_tree(re.sub(r"\\(.)", r"\1", printed))
        verdict = check_tree(tree, question.tokens, reader)
        self._check_absent(verdict.assumed)
        settings = policy.reader_settings(
            self._limits.settings(), {**call.settings, **question.settings}
        )
        forced = self._forced(call.tag, tenant)
        if verdict.tables == _SETTINGS_TABLE:
            # Clients look there for what they may send; at 1 they would find: nothing.
            forced["readonly"] = 2
        return _put(
            self._readers, question, format_name, parameters, {**settings, **forced}, DATABASE
        )

    def _order(self, call: Call, database: str) -> Answer:
        store = self._administrators
        canonical = self._canonical(store, call.sql)
        if not _QUESTIONS.match(canonical):
            if call.is_reading:
                raise ClickHouseError(
                    READONLY, "Cannot execute query in readonly mode (GET); send POST"
                )
            body = store.ask(canonical, call.parameters, settings=call.settings, database=database)
            return Answer(body=body, format=DEFAULT_FORMAT if body else "")
        question = split_question(canonical)
        format_name = question.format or call.default_format or DEFAULT_FORMAT
        if self._is_hello(question, call, format_name):
            return self._hello()
        settings = {**call.settings, **question.settings}
        settings.setdefault("log_comment", call.tag)
        parameters = _used(question, call.parameters)
        return _put(store, question, format_name, parameters, settings, database)

    def _canonical(self, store: Store, sql: bytes) -> str:
        """One statement without comments, as the engine prints it."""
        try:
            text = sql.decode()
        except UnicodeDecodeError as error:
            raise ClickHouseError(SYNTAX_ERROR, f"The statement is no UTF-8: {error}") from error
        try:
            printed = store.ask(
                "SELECT formatQuerySingleLine({q:String}) FORMAT TabSeparatedRaw",
                {"q": escape(text)},
            )
        except EngineError as error:
            # Where the engine says where, it means the statement above.
            message, _, _ = str(error).partition(": In scope SELECT formatQuery")
            raise ClickHouseError(error.code, message) from error
        return printed.decode().rstrip("\n")

    def _is_hello(self, question: Question, call: Call, format_name: str) -> bool:
        return (
            question.core == _HELLO
            and format_name == "Native"
            and call.protocol >= CUSTOM_SERIALIZATION_REVISION
        )

    def _hello(self) -> Answer:
        return Answer(body=hello(self.display_name, self.version, self.timezone), format="Native")

    def _explained(self, error: NotReadableError) -> ClickHouseError:
        """A table that is not there is not one that is not for this reader."""
        database, _, table = error.table.partition(".")
        if database != DATABASE or self._existing([table]):
            return error
        return ClickHouseError(
            UNKNOWN_TABLE, f"Unknown table expression identifier '{error.table}'"
        )

    def _existing(self, names: Iterable[str]) -> list[str]:
        """Those of the names that tables have."""
        listed = ", ".join(quote(name) for name in sorted(names))
        sql = f"SELECT name FROM system.tables WHERE database = '{DATABASE}' AND name IN ({listed})"  # noqa: S608 - quoted
        return _column(self._readers, sql)

    def _check_absent(self, names: frozenset[str]) -> None:
        """What a statement calls by its own names must not be tables that a reader cannot read."""
        if not names:
            return
        found = self._existing(names)
        if found:
            raise ClickHouseError(
                READONLY, f"{', '.join(found)} is the name of a table here; take another name"
            )

    def _forced(self, tag: str, tenant: str | None) -> dict[str, object]:
        """Settings that no wish can change."""
        filters = ", ".join(
            f"{quote(table)}: {quote(rows)}" for table, rows in policy.row_filters(tenant).items()
        )
        return {
            "read_overflow_mode": "throw",
            "timeout_overflow_mode": "throw",
            "log_comment": tag,
            "additional_table_filters": f"{{{filters}}}",
            **(_ALONE if tenant is not None else {}),
            **_ALWAYS,
        }


def _put(
    store: Store,
    question: Question,
    format_name: str,
    parameters: Mapping[str, str],
    settings: Mapping[str, object],
    database: str,
) -> Answer:
    """Run a question with the format and the settings that were decided on."""
    clause = _clause(settings)
    body = store.ask(
        f"{question.core}\n FORMAT {format_name}\n SETTINGS {clause}",
        parameters,
        database=database,
    )
    if not body and format_name == "Native" and _is_select(question):
        body = _header(store, question.core, parameters, clause, database)
    return Answer(body=body, format=format_name)


def _header(
    store: Store, core: str, parameters: Mapping[str, str], clause: str, database: str
) -> bytes:
    """The columns of an answer that has no rows."""
    rows = store.ask(
        f"DESCRIBE TABLE ({core})\n FORMAT JSONCompactEachRow\n SETTINGS {clause}",
        parameters,
        database=database,
    )
    return header([(row[0], row[1]) for row in map(json.loads, rows.splitlines())])


def _used(question: Question, parameters: Mapping[str, str]) -> dict[str, str]:
    """The parameters that the statement has a place for."""
    names = [
        token.text[1:].partition(":")[0]
        for token in question.tokens
        if token.kind is Kind.PARAMETER
    ]
    return {name: parameters[name] for name in names if name in parameters}


def _is_select(question: Question) -> bool:
    return question.core.startswith(("SELECT", "WITH", "("))


def _clause(settings: Mapping[str, object]) -> str:
    for name in settings:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ClickHouseError(SYNTAX_ERROR, f"Syntax error: {name!r} is no name of a setting")
    return ", ".join(f"{name} = {quote(_value(value))}" for name, value in settings.items())


def _value(value: object) -> str:
    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _assignments(clause: str) -> dict[str, str]:
    """The SETTINGS clause of an INSERT."""
    if not clause:
        return {}
    question = split_question(f"SELECT 1 SETTINGS {clause}")
    if not question.settings:
        raise ClickHouseError(NOT_IMPLEMENTED, f"SETTINGS {clause} cannot be read here")
    return question.settings


def _functions(store: Store) -> Sequence[policy.EngineFunction]:
    rows = store.ask(
        "SELECT name, categories, alias_to, case_insensitive, is_aggregate, origin "
        "FROM system.functions FORMAT JSONCompactEachRow"
    )
    return [
        policy.EngineFunction(
            name=name,
            category=category,
            alias_to=alias_to,
            is_case_insensitive=bool(case_insensitive),
            is_aggregate=bool(is_aggregate),
            is_built_in=origin == "System",
        )
        for name, category, alias_to, case_insensitive, is_aggregate, origin in map(
            json.loads, rows.splitlines()
        )
    ]


def _column(store: Store, sql: str) -> list[Any]:
    rows = store.ask(f"{sql} FORMAT JSONCompactEachRow")
    return [row[0] for row in map(json.loads, rows.splitlines())]


def _shown(error: EngineError, *, is_bound: bool) -> ClickHouseError:
    """What a reader is told."""
    if is_bound and error.code not in _TOLD:
        name = re.search(r"\(([A-Z0-9_]+)\)\s*$", str(error))
        words = LIMIT_ERRORS.get(error.code, "the statement failed")
        return ClickHouseError(error.code, f"{words} ({name[1] if name else 'ERROR'})")
    return ClickHouseError(error.code, _plain(error))


def _plain(error: EngineError) -> str:
    return str(error).strip()
