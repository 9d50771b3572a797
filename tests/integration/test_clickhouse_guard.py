"""A hostile reader of the ClickHouse endpoint: whatever is no question about metering's tables is refused."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from query_api.clickhouse.policy import READABLE, TABLE_FUNCTIONS, TENANT_ROWS
from query_api.tokens import make_token
from receiver.store.keys import Scope
from tests.integration.clickhouse_endpoint import ADMIN_PASSWORD, Running, running_endpoint
from tests.waiting import eventually

ALLOWED = Path(__file__).with_name("clickhouse_functions.txt")

SYNTAX, READONLY, DENIED, UNKNOWN_TABLE, UNKNOWN_FORMAT = 62, 164, 497, 60, 73


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    path = tmp_path_factory.mktemp("engine")
    limits: dict[str, Any] = {"query_max_seconds": 1, "clickhouse_max_memory_bytes": 200 * 2**20}
    with running_endpoint(path, query_max_rows=10**8, **limits) as running:
        running.store.execute("CREATE TABLE metering.made_by_hand (a String) ENGINE = Memory")
        running.store.execute("INSERT INTO metering.made_by_hand VALUES ('secret')")
        running.key("tenant_a")
        yield running


WRITES = [
    "DROP TABLE metering.events",
    "DROP DATABASE metering",
    "TRUNCATE TABLE metering.events",
    "CREATE TABLE metering.x (a Int) ENGINE = Memory",
    "CREATE FUNCTION f AS x -> x",
    "CREATE VIEW metering.v AS SELECT 1",
    "CREATE TEMPORARY TABLE t (a Int)",
    "CREATE USER u",
    "CREATE NAMED COLLECTION c AS url = 'http://x'",
    "ALTER TABLE metering.events DELETE WHERE 1",
    "ALTER TABLE metering.events UPDATE quantity = 0 WHERE 1",
    "DELETE FROM metering.events WHERE 1",
    "OPTIMIZE TABLE metering.events FINAL",
    "RENAME TABLE metering.events TO metering.e",
    "EXCHANGE TABLES metering.events AND metering.meters",
    "DETACH TABLE metering.events",
    "ATTACH TABLE metering.events",
    "INSERT INTO metering.meters SELECT * FROM metering.meters",
    "INSERT INTO FUNCTION file('x.csv') SELECT 1",
    "INSERT INTO metering.meters (slug) VALUES ('x')",
    "INSERT INTO metering.meters (slug) FORMAT TSV\nx",
    "SET max_memory_usage = 0",
    "SET ROLE ALL",
    "USE system",
    "SYSTEM SHUTDOWN",
    "SYSTEM FLUSH LOGS",
    "SYSTEM DROP MARK CACHE",
    "KILL QUERY WHERE 1",
    "GRANT ALL ON *.* TO u",
    "BACKUP TABLE metering.events TO Disk('x', 'y')",
    "EXPLAIN SELECT 1",
    "EXPLAIN AST DROP TABLE metering.events",
    "EXPLAIN PLAN SELECT * FROM metering.api_keys",
    "EXPLAIN TABLE OVERRIDE mysql('a', 'b', 'c', 'd', 'e') SELECT 1",
    "CHECK TABLE metering.events",
    "WATCH metering.events",
    "BEGIN TRANSACTION",
    "COMMIT",
    "EXECUTE AS u SELECT 1",
    "UNDROP TABLE metering.events",
    "MOVE USER u TO local",
    "SHOW PROCESSLIST",
    "SHOW GRANTS",
    "SHOW ACCESS",
    "SHOW CLUSTERS",
    "SHOW SETTINGS LIKE '%'",
    "SHOW FUNCTIONS",
    "SHOW ENGINES",
    "SHOW TABLES FROM metering WHERE file('/etc/passwd') != ''",
    "SHOW TABLES FROM metering WHERE name = 'events'",
    "SHOW TABLES FROM metering WHERE 'secret' IN made_by_hand",
    "SHOW COLUMNS FROM events WHERE (SELECT 1 FROM metering.made_by_hand)",
    "SHOW DICTIONARIES",
    "SHOW CREATE USER u",
    "SHOW CREATE TABLE metering.made_by_hand",
    "SHOW CREATE TABLE system.tables_of_nobody",
    "EXISTS DATABASE system",
    "DESCRIBE TABLE file('x.csv')",
    "DESCRIBE TABLE url('http://127.0.0.1')",
    "DESCRIBE TABLE (SELECT * FROM file('x'))",
    "DESCRIBE TABLE metering.made_by_hand",
]


@pytest.mark.parametrize("sql", WRITES)
@pytest.mark.parametrize("tenant", [None, "tenant_a"])
def test_a_reader_only_asks(endpoint: Running, sql: str, tenant: str | None) -> None:
    assert endpoint.ask(sql, tenant=tenant).code in (READONLY, DENIED, SYNTAX, UNKNOWN_TABLE)
    assert endpoint.rows("SELECT count() FROM metering.meters") == [[0]]
    assert endpoint.store.query("EXISTS TABLE metering.events")[0][0] == 1


READS_ELSEWHERE = [
    "SELECT * FROM metering.made_by_hand",
    "SELECT * FROM made_by_hand",
    "SELECT * FROM `metering`.`made_by_hand`",
    'SELECT * FROM "metering"."made_by_hand"',
    "SELECT * FROM/**/metering . made_by_hand",
    "FROM metering.made_by_hand SELECT a",
    "FROM metering.made_by_hand",
    "SELECT 'secret' IN metering.made_by_hand",
    "SELECT 'secret' IN (made_by_hand)",
    "SELECT 'secret' NOT IN metering.made_by_hand",
    "SELECT 'secret' GLOBAL IN metering.made_by_hand",
    "SELECT in('secret', metering.made_by_hand)",
    "SELECT globalNotNullIn('secret', made_by_hand)",
    "SELECT 1 WHERE 'secret' IN made_by_hand UNION ALL SELECT 2",
    "SELECT (SELECT any(a) FROM metering.made_by_hand)",
    "WITH x AS (SELECT * FROM metering.made_by_hand) SELECT * FROM x",
    "WITH (SELECT any(a) FROM metering.made_by_hand) AS x SELECT x",
    "WITH made_by_hand AS (SELECT 1 AS a) SELECT * FROM made_by_hand",
    "SELECT 1 AS made_by_hand, (SELECT any(a) FROM made_by_hand)",
    "SELECT * FROM metering.events AS made_by_hand, (SELECT * FROM made_by_hand)",
    "SELECT * FROM metering.events UNION ALL SELECT * FROM metering.made_by_hand",
    "SELECT 1 EXCEPT SELECT 1 FROM metering.made_by_hand",
    "SELECT 1 INTERSECT SELECT 1 FROM metering.made_by_hand",
    "SELECT * FROM metering.events JOIN metering.made_by_hand ON 1",
    "SELECT * FROM metering.events, metering.made_by_hand",
    "SELECT * FROM metering.events PASTE JOIN metering.made_by_hand",
    "SELECT exists(SELECT 1 FROM metering.made_by_hand)",
    "SELECT 1 ORDER BY (SELECT any(a) FROM metering.made_by_hand)",
    "SELECT 1 LIMIT (SELECT count() FROM metering.made_by_hand)",
    "SELECT sum(1) OVER (ORDER BY (SELECT any(a) FROM metering.made_by_hand))",
    "SELECT * FROM metering.events ARRAY JOIN [(SELECT any(a) FROM metering.made_by_hand)] AS z",
    "SELECT * REPLACE ((SELECT any(a) FROM metering.made_by_hand) AS meter) FROM metering.events",
    "SELECT COLUMNS('meter') APPLY (x -> (SELECT any(a) FROM metering.made_by_hand)) FROM metering.events",
    "SELECT 1 GROUP BY GROUPING SETS (((SELECT any(a) FROM metering.made_by_hand)))",
    "SELECT 1 AS n ORDER BY n WITH FILL FROM (SELECT count() FROM metering.made_by_hand) TO 9",
    "SELECT 1 AS n ORDER BY n WITH FILL TO 3 INTERPOLATE (n AS (SELECT 1 FROM made_by_hand))",
    "SELECT * FROM metering.usage_minute_view",
    "SELECT * FROM metering.quarantine_ids_view",
    "SELECT * FROM system.processes",
    "SELECT * FROM system.users",
    "SELECT * FROM system.query_log",
    "SELECT * FROM system.server_settings",
    "SELECT * FROM system.named_collections",
    "SELECT * FROM system.parts",
    "SELECT * FROM system.numbers LIMIT 1",
    "SELECT * FROM system.stack_trace",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM INFORMATION_SCHEMA.TABLES",
    "SELECT 1 IN system.processes",
    "SELECT * FROM `system.processes`",
    "SELECT * FROM default.x",
    "SELECT * FROM _temporary_and_external_tables.x",
    "SELECT * FROM {t:Identifier}",
    "SELECT * FROM metering.{t:Identifier}",
    "SELECT {t:Identifier} FROM metering.events",
    "SELECT file('/etc/passwd')",
    "SELECT FILE('/etc/passwd')",
    "SELECT `file`('/etc/passwd')",
    "SELECT \"file\"('/etc/passwd')",
    "SELECT file ( '/etc/passwd' )",
    "SELECT 1 WHERE file('/etc/passwd') != ''",
    "SELECT arrayMap(x -> file(x), ['/etc/passwd'])",
    "SELECT quantile(length(file('x')))(1)",
    "SELECT sumIf(1, file('x') = '')",
    "SELECT 1 FROM metering.events a JOIN metering.events b USING (file('x'))",
    "SELECT 1 LIMIT length(file('x'))",
    "SELECT 1 LIMIT 1 BY file('x')",
    "SELECT 1 SETTINGS max_threads = 1 UNION ALL SELECT length(file('x'))",
    "SELECT dictGet('d', 'a', 1)",
    "SELECT joinGet('metering.made_by_hand', 'a', 1)",
    "SELECT hasColumnInTable('metering', 'made_by_hand', 'a')",
    "SELECT getSetting('additional_table_filters')",
    "SELECT getServerSetting('max_connections')",
    "SELECT getMacro('x')",
    "SELECT getClientHTTPHeader('x')",
    "SELECT sleep(1)",
    "SELECT sleepEachRow(1) FROM numbers(10)",
    "SELECT demangle('x')",
    "SELECT addressToLine(1)",
    "SELECT showCertificate()",
    "SELECT chdb('SELECT 1')",
    "SELECT formatRow('CSV', 1)",
    "SELECT throwIf(1)",
    "SELECT aiGenerate('x', 'y')",
    "SELECT regionToName(1)",
    "SELECT encrypt('aes-128-ecb', 'x', '0123456789abcdef')",
    "SELECT filesystemAvailable()",
    "SELECT serverUUID()",
    "SELECT levenshteinDistance('a', 'b')",
    "SELECT editDistanceUTF8('a', 'b')",
    "SELECT arrayLevenshteinDistance(['a'], ['b'])",
    "SELECT hostName()",
    "SELECT tcpPort()",
    "SELECT __actionName('x')",
    "SELECT formatQuery('SELECT 1')",
    "SELECT * FROM file('/etc/passwd', 'RawBLOB')",
    "SELECT * FROM FILE('/etc/passwd', 'RawBLOB')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM `/etc/passwd`",
    "SELECT * FROM url('http://127.0.0.1/', 'RawBLOB')",
    "SELECT * FROM urlCluster('c', 'http://127.0.0.1/', 'RawBLOB')",
    "SELECT * FROM remote('127.0.0.1', 'metering', 'made_by_hand')",
    "SELECT * FROM remoteSecure('127.0.0.1', metering.made_by_hand)",
    "SELECT * FROM cluster('default', metering.made_by_hand)",
    "SELECT * FROM clusterAllReplicas('default', metering, made_by_hand)",
    "SELECT * FROM s3('http://127.0.0.1/x', 'CSV')",
    "SELECT * FROM gcs('http://127.0.0.1/x', 'CSV')",
    "SELECT * FROM executable('cat', 'CSV', 'a String')",
    "SELECT * FROM merge('metering', '.*')",
    "SELECT * FROM merge(REGEXP('.*'), '.*')",
    "SELECT * FROM loop(metering.made_by_hand) LIMIT 1",
    "SELECT * FROM view(SELECT * FROM metering.made_by_hand)",
    "SELECT * FROM viewIfPermitted(SELECT 1 AS a ELSE null('a Int'))",
    "SELECT * FROM viewExplain('EXPLAIN', '', (SELECT 1))",
    "SELECT * FROM (EXPLAIN AST SELECT 1)",
    "SELECT * FROM dictionary('d')",
    "SELECT * FROM mergeTreeIndex('metering', 'events')",
    "SELECT * FROM mergeTreeProjection('metering', 'events', 'p')",
    "SELECT * FROM mysql('127.0.0.1', 'a', 'b', 'c', 'd')",
    "SELECT * FROM postgresql('127.0.0.1', 'a', 'b', 'c', 'd')",
    "SELECT * FROM sqlite('x', 'y')",
    "SELECT * FROM redis('127.0.0.1', 'k', 'k String')",
    "SELECT * FROM mongodb('127.0.0.1', 'a', 'b', 'c', 'd', 'e Int')",
    "SELECT * FROM hdfs('hdfs://127.0.0.1/x', 'CSV')",
    "SELECT * FROM input('a Int')",
    "SELECT * FROM python('x')",
    "SELECT * FROM Python(os)",
    "SELECT * FROM eval('SELECT 1')",
    "SELECT * FROM arrowstream('x')",
    "SELECT * FROM fuzzQuery('SELECT 1')",
    "SELECT * FROM generateRandom('a Int')",
    "SELECT * FROM filesystem('/')",
    "SELECT * FROM format(CSV, '1')",
    "SELECT 1 IN (SELECT * FROM url('http://127.0.0.1/', 'CSV', 'a Int'))",
    "SELECT 1 INTO OUTFILE 'x'",
    "SELECT 1 INTO OUTFILE 'x' APPEND FORMAT CSV",
    "SELECT 1 INTO OUTFILE 'x' TRUNCATE COMPRESSION 'gzip' FORMAT CSV SETTINGS max_threads = 1",
    "SELECT * FROM (SELECT 1 INTO OUTFILE 'x')",
    "SELECT 1 PARALLEL WITH DROP TABLE metering.events",
    "SELECT * FROM metering.events AS `metering.usage_day`",
    "WITH `metering.usage_day` AS (SELECT 1) SELECT * FROM metering.events",
    "SELECT * FROM metering.events AS `METERING.EVENTS`",
    "SELECT `a\nTableIdentifier x` FROM metering.events",
    "SELECT 1 AS `a\\n  b`",
]


@pytest.mark.parametrize("sql", READS_ELSEWHERE)
def test_a_reader_reads_the_tables_of_metering_and_nothing_else(
    endpoint: Running, sql: str
) -> None:
    for tenant in (None, "tenant_a"):
        answer = endpoint.ask(sql, tenant=tenant, param_t="made_by_hand")

        assert answer.code in (DENIED, READONLY, SYNTAX, UNKNOWN_TABLE), answer.text
        assert "secret" not in answer.text.replace(sql, "")


MANY = [
    "SELECT 1; SELECT 2",
    "SELECT 1; DROP TABLE metering.meters",
    "SELECT 1;\n-- x\nDROP TABLE metering.meters",
    "SELECT 1 /* ; */ ; DROP TABLE metering.meters --",
    "SELECT ';'; DROP TABLE metering.meters",
    "EXPLAIN AST SELECT 1; DROP TABLE metering.meters",
    "SELECT 1 FORMAT JSON; DROP TABLE metering.meters",
    "SELECT 1 SETTINGS max_threads = 1; DROP TABLE metering.meters",
    "SELECT $a$ $a$; DROP TABLE metering.meters",
    "/* /* */ SELECT 1; DROP TABLE metering.meters /* */",
    "# x\nSELECT 1; DROP TABLE metering.meters",
]


@pytest.mark.parametrize("sql", MANY)
def test_a_request_is_one_statement(endpoint: Running, sql: str) -> None:
    assert endpoint.ask(sql).code == SYNTAX
    assert endpoint.admin(sql).code == SYNTAX
    assert endpoint.store.query("EXISTS TABLE metering.meters")[0][0] == 1


def test_what_stands_in_a_text_or_in_a_comment_is_no_statement(endpoint: Running) -> None:
    sql = "SELECT '; DROP TABLE x; -- /*' AS `; --`, $a$INTO OUTFILE$a$ /* ; file('x') */ -- ;"

    assert endpoint.rows(sql) == [["; DROP TABLE x; -- /*", "INTO OUTFILE"]]


SECRETS = [
    "SELECT key_hash FROM metering.api_keys",
    "SELECT key_hash AS h FROM metering.api_keys",
    "SELECT `key_hash` FROM api_keys",
    "SELECT k.key_hash FROM metering.api_keys AS k",
    "SELECT metering.api_keys.key_hash FROM metering.api_keys",
    "SELECT * FROM metering.api_keys",
    "SELECT k.* FROM metering.api_keys AS k",
    "SELECT * EXCEPT key_id FROM metering.api_keys",
    "SELECT * REPLACE (1 AS key_id) FROM metering.api_keys",
    "SELECT COLUMNS('hash') FROM metering.api_keys",
    "SELECT COLUMNS(key_hash) FROM metering.api_keys",
    "SELECT k.COLUMNS('key') FROM metering.api_keys AS k",
    "SELECT tuple(*) FROM metering.api_keys",
    "SELECT any(tuple(*)) FROM metering.api_keys",
    "SELECT * FROM (SELECT * FROM metering.api_keys)",
    "SELECT x FROM (SELECT * FROM metering.api_keys) AS t (a, b, x)",
    "SELECT x FROM metering.api_keys AS t (a, b, x)",
    "WITH t (a, b, x) AS (SELECT * FROM metering.api_keys) SELECT x FROM t",
    "SELECT 1 FROM metering.api_keys WHERE key_hash LIKE 'a%'",
    "SELECT 1 FROM metering.api_keys ORDER BY key_hash",
    "SELECT count() FROM metering.api_keys GROUP BY key_hash",
    "SELECT 1 FROM metering.api_keys LIMIT 1 BY key_hash",
    "SELECT count(key_hash) FROM metering.api_keys",
    "SELECT length(key_hash) FROM metering.api_keys",
    "SELECT 1 FROM metering.api_keys HAVING max(key_hash) > ''",
    "SELECT any(key_hash) OVER () FROM metering.api_keys",
    "SELECT key_hash.size FROM metering.api_keys",
    "SELECT (SELECT any(key_hash) FROM metering.api_keys)",
    "SELECT 1 FROM metering.api_keys AS a JOIN (SELECT 'x' AS key_hash) AS b USING (key_hash)",
    "SELECT 1 FROM metering.api_keys NATURAL JOIN (SELECT 'x' AS key_hash)",
    "SELECT ('a', 'b') IN metering.api_keys",
    "SELECT 'a' IN api_keys",
    "SELECT key_id FROM metering.api_keys UNION ALL SELECT key_hash FROM metering.api_keys",
    "SELECT * FROM metering.events UNION ALL SELECT * FROM metering.api_keys",
    "SELECT * FROM metering.events, metering.api_keys",
    "SELECT h FROM metering.api_keys ARRAY JOIN [key_hash] AS h",
    "WITH key_hash AS h SELECT h FROM metering.api_keys",
    "SELECT payload FROM metering.quarantine",
    "SELECT * FROM metering.quarantine",
    "SELECT max(payload) FROM quarantine",
    "SELECT t FROM metering.api_keys AS t",
    "SELECT api_keys FROM metering.api_keys",
    "SELECT count(tuple(*)) FROM metering.api_keys",
    "SELECT count((SELECT * FROM metering.api_keys LIMIT 1)) ",
]


@pytest.mark.parametrize("sql", SECRETS)
def test_hashes_of_keys_and_payloads_are_for_no_reader(endpoint: Running, sql: str) -> None:
    for tenant in (None, "tenant_a"):
        answer = endpoint.ask(sql, tenant=tenant)

        assert answer.code in (DENIED, 47), answer.text
        for (stored,) in endpoint.store.query("SELECT key_hash FROM metering.api_keys"):
            assert stored not in answer.text


def test_everything_else_of_these_tables_is(endpoint: Running) -> None:
    keys = "SELECT key_id, name, scopes, tenant_id, revoked_at FROM metering.api_keys FINAL"

    assert len(endpoint.rows(keys)) == len(endpoint.keys.list())
    assert endpoint.rows("SELECT count(*) FROM metering.api_keys") == [[len(endpoint.keys.list())]]
    assert endpoint.rows("SELECT reason, count(*) FROM metering.quarantine GROUP BY reason") == []


FORBIDDEN_SETTINGS = {
    "additional_table_filters": "{}",
    "additional_result_filter": "1",
    "allow_ddl": "1",
    "allow_experimental_analyzer": "0",
    "format_schema": "/etc/passwd:x",
    "format_template_resultset": "/etc/passwd",
    "max_rows_to_group_by": "1",
    "output_format_schema": "/tmp/x",
    "profile": "default",
    "query_plan_merge_filters": "1",
    "read_overflow_mode": "break",
    "s3_max_connections": "1",
    "timeout_overflow_mode": "break",
    "use_query_condition_cache": "1",
    "workload": "x",
}


@pytest.mark.parametrize("name", FORBIDDEN_SETTINGS)
def test_settings_that_reach_further_are_refused_in_the_url_and_in_the_text(
    endpoint: Running, name: str
) -> None:
    value = FORBIDDEN_SETTINGS[name]
    texts = [
        f"SELECT 1 SETTINGS {name} = '{value}'",
        f"SELECT 1 FORMAT CSV SETTINGS {name} = '{value}'",
    ]

    given: dict[str, Any] = {name: value}
    assert endpoint.ask("SELECT 1", **given).code == READONLY
    for sql in texts:
        assert endpoint.ask(sql).code == READONLY
    assert endpoint.ask(f"SELECT 1 SETTINGS {name} = {value}").code in (READONLY, SYNTAX)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM (SELECT 1 SETTINGS max_execution_time = 0)",
        "DESCRIBE TABLE (SELECT 1 SETTINGS max_execution_time = 0)",
        "DESCRIBE TABLE (SELECT 1 UNION ALL (SELECT 1 SETTINGS max_execution_time = 0))",
        "SELECT 1 SETTINGS max_execution_time = 0 UNION ALL SELECT 2",
        "WITH x AS (SELECT 1 SETTINGS additional_table_filters = {}) SELECT * FROM x",
        "SELECT 1 IN (SELECT 1 SETTINGS readonly = 0)",
        "SELECT 1 SETTINGS additional_table_filters = {'metering.events': '1'}",
        "SELECT 1 SETTINGS max_threads = {x:UInt8}",
        "SELECT 1 SETTINGS limit = 1, additional_table_filters = '{}'",
        "SELECT 1 SETTINGS limit = 1 FORMAT CSV SETTINGS allow_ddl = 1",
        "DESCRIBE TABLE metering.events SETTINGS describe_compact_output = 1",
        "SELECT 1 SETTINGS profile = 'default'",
        "SELECT 1 SETTINGS param_x = '1'",
    ],
)
def test_settings_stand_at_the_end_alone(endpoint: Running, sql: str) -> None:
    assert endpoint.ask(sql, param_x="1").code in (READONLY, SYNTAX)


def test_limits_can_be_lowered_and_not_raised(endpoint: Running) -> None:
    many = "SELECT number FROM numbers(100)"

    assert endpoint.ask(many, max_result_rows=10).code == 396
    assert endpoint.ask(f"{many} SETTINGS max_result_rows = 10").code == 396
    assert endpoint.ask("SELECT count() FROM numbers(100)", max_rows_to_read=10).code == 158
    assert endpoint.ask("SELECT number FROM numbers(2000000)", max_result_rows=10**9).code == 396
    assert endpoint.ask("SELECT number FROM numbers(2000000)", max_result_rows=0).code == 396
    assert (
        endpoint.ask("SELECT count() FROM numbers(1000000000000)", max_rows_to_read=0).code == 158
    )
    assert endpoint.ask(many, max_result_rows="x").code == READONLY


RUNS_WITH = {
    "allow_ddl": "0",
    "allow_introspection_functions": "0",
    "max_execution_time": "1",
    "max_memory_usage": str(200 * 2**20),
    "max_result_bytes": str(256 * 2**20),
    "max_result_rows": "1000000",
    "max_rows_to_read": str(10**8),
    "read_overflow_mode": "throw",
    "readonly": "1",
    "timeout_overflow_mode": "throw",
    "use_query_cache": "0",
    "use_query_condition_cache": "0",
}
ALONE_RUNS_WITH = {
    "enable_join_runtime_filters": "0",
    "optimize_move_to_prewhere": "0",
    "output_format_write_statistics": "0",
    "query_plan_filter_push_down": "0",
    "query_plan_merge_filters": "0",
    "query_plan_optimize_prewhere": "0",
}


@pytest.mark.parametrize(
    "wishes",
    [
        {},
        {name: str(10**15) for name in RUNS_WITH if name.startswith("max_")},
        {name: "0" for name in RUNS_WITH if name.startswith("max_")},
        {name: "nan" for name in RUNS_WITH if name.startswith("max_")},
        {name: "-1" for name in RUNS_WITH if name.startswith("max_")},
        {"readonly": "0", "use_query_cache": "1", "output_format_write_statistics": "1"},
    ],
    ids=str,
)
def test_what_a_statement_of_a_reader_runs_with_is_not_for_it_to_say(
    endpoint: Running, wishes: dict[str, str]
) -> None:
    # Together with another table: alone, system.settings is told what clients want to find there.
    sql = "SELECT name, value FROM system.settings, system.one"
    clause = ", ".join(f"{name} = '{value}'" for name, value in wishes.items())
    given: dict[str, Any] = wishes

    for tenant, expected in ((None, RUNS_WITH), ("tenant_a", RUNS_WITH | ALONE_RUNS_WITH)):
        for answer in (
            endpoint.rows(sql, tenant, **given),
            endpoint.rows(f"{sql} SETTINGS {clause}" if clause else sql, tenant),
        ):
            found = dict(answer)
            assert {name: found[name] for name in expected} == expected


def test_no_aggregate_function_of_the_profiler_is_reached_by_a_text(endpoint: Running) -> None:
    for sql in (
        "SELECT arrayReduce('flameGraph', [[toUInt64(1)]])",
        "SELECT initializeAggregation('flameGraph', [toUInt64(1)])",
    ):
        assert endpoint.ask(sql).code == 446


def test_a_statement_ends_in_time(endpoint: Running) -> None:
    slow = "SELECT count() FROM numbers(90000000) WHERE NOT ignore(cityHash64(toString(number), MD5(toString(number))))"

    assert endpoint.ask(slow).code == 159
    assert endpoint.ask(slow, max_execution_time=3600).code == 159


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SELECT repeat('x', 1000000000)", (241, 131, 173)),
        ("SELECT length(range(1000000000))", (69, 241, 128, 173)),
        ("SELECT groupArray(number) FROM numbers(90000000)", (241,)),
        ("SELECT arrayJoin(range(1000000)) AS a, arrayJoin(range(1000)) AS b", (241, 396, 159)),
        ("SELECT a.number FROM numbers(1000000) a, numbers(1000000) b", (241, 396, 158, 159)),
        ("SELECT repeat('x', 1000) FROM numbers(900000)", (396, 241)),
        ("SELECT " + "(" * 3000 + "1" + ")" * 3000, (306, 62, 167)),
        ("SELECT " + "[" * 900 + "1" + "]" * 900, (0, 306, 167)),
        ("SELECT " + ",".join(["1"] * 60000), (168, 62, 396, 241)),
        ("SELECT '" + "x" * 300_000 + "'", (62,)),
    ],
)
def test_a_huge_statement_or_answer_is_refused_and_the_next_one_answered(
    endpoint: Running, sql: str, code: tuple[int, ...]
) -> None:
    assert endpoint.ask(sql).code in code
    assert endpoint.rows("SELECT 1") == [[1]]


TEDIOUS = {
    "alias": "SELECT '" + " (alias " * 20_000 + "' SETTINGS limit = 0",
    "combinators": "SELECT sum" + "State" * 40_000 + "(1)",
    "names": "SELECT " + ", ".join(["1 IN x"] * 8_000) + " FROM (SELECT 1) AS x",
    "settings": "SELECT no_such_name SETTINGS " + ",".join(["limit=1"] * 32_000),
}


@pytest.mark.parametrize("name", TEDIOUS)
def test_the_time_to_read_a_statement_grows_as_its_length_does(
    endpoint: Running, name: str
) -> None:
    # By the square of it, each of these takes half a minute and more, with the interpreter to itself.
    began = time.monotonic()

    endpoint.ask(TEDIOUS[name])

    assert time.monotonic() - began < 20


def test_a_form_is_read_in_little_time_or_refused(endpoint: Running) -> None:
    key = endpoint.key()
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Authorization": f"Bearer {key}"}
    field = b'--b\r\nContent-Disposition: form-data; name="query"\r\n\r\nSELECT 1\r\n'
    nested = b"".join(
        b"--b%s\r\nContent-Type: multipart/mixed; boundary=b%d\r\n\r\n"
        % (b"%d" % n if n else b"", n + 1)
        for n in range(3_000)
    )
    parts = b"--b\r\nContent-Disposition: form-data" + b'; a="' * 100_000 + b"\r\n\r\nx\r\n"
    began = time.monotonic()

    assert endpoint.send("POST", "/", field + b"--b--\r\n", headers).text == "1\n"
    assert endpoint.send("POST", "/", field * 10_000, headers).code == 36
    assert endpoint.send("POST", "/", b"--b\r\n\r\n" * 100_000, headers).code == 36
    assert endpoint.send("POST", "/", parts, headers).code == 36
    assert endpoint.send("POST", "/", nested, headers).code in (36, SYNTAX)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "name",
    [
        "Template",
        "Protobuf",
        "CapnProto",
        "CustomSeparated",
        "MySQLWire",
        "PostgreSQLWire",
        "ODBCDriver2",
        "SQLInsert",
        "Prometheus",
        "AvroConfluent",
        "Nonsense",
        "CSV.gz",
    ],
)
def test_formats_that_have_files_or_protocols_are_refused(endpoint: Running, name: str) -> None:
    wanted = (UNKNOWN_FORMAT, SYNTAX)

    assert endpoint.ask(f"SELECT 1 FORMAT {name}").code in wanted
    assert endpoint.ask("SELECT 1", default_format=name).code == UNKNOWN_FORMAT
    headers = {"X-ClickHouse-Format": name}
    assert endpoint.ask("SELECT 1", headers=headers).code == UNKNOWN_FORMAT


def test_a_statement_has_at_most_256_kib(endpoint: Running) -> None:
    assert endpoint.ask("SELECT 1".ljust(256 * 1024)).code == 0
    refused = endpoint.ask("SELECT 1".ljust(256 * 1024 + 1))
    assert refused.code == SYNTAX
    assert "262144 bytes" in refused.text


def test_a_body_of_a_reader_has_at_most_a_mebibyte(endpoint: Running) -> None:
    assert endpoint.ask("SELECT 1".ljust(2**20)).code == SYNTAX
    assert endpoint.ask("SELECT 1".ljust(2**20 + 1)).code == 307


def test_other_databases_are_not_there(endpoint: Running) -> None:
    for database in ("system", "information_schema", "x", "metering2"):
        assert endpoint.ask("SELECT 1", database=database).code == 81
        assert endpoint.ask("SELECT 1", headers={"X-ClickHouse-Database": database}).code == 81


def test_who_has_no_key_of_scope_query_is_let_in_nowhere(endpoint: Running) -> None:
    key = endpoint.key()

    assert endpoint.send("POST", "/", b"SELECT 1").status == 401
    assert endpoint.send("POST", "/", b"SELECT 1").headers["www-authenticate"].startswith("Basic")
    near = ADMIN_PASSWORD[:-1], ADMIN_PASSWORD[1:], ADMIN_PASSWORD + "x", ADMIN_PASSWORD.upper()
    for user, password in [
        *(("default", ""), ("default", key), (key, ""), ("admin", key), ("admin", "")),
        *(("admin", guess) for guess in near),
    ]:
        answer = endpoint.ask("SELECT 1", user=user, password=password)
        assert (answer.status, answer.code) == (403, 516)
    for password in ("", "x", key[:-1], key + "x", key.upper(), "ott_x.y"):
        assert endpoint.ask("SELECT 1", password=password).code == 516
    assert endpoint.ask("SELECT 1", password=endpoint.key(None, Scope.INGEST)).code == DENIED
    assert endpoint.ask("SELECT 1", password=endpoint.key(None, Scope.ADMIN)).code == 0
    made, text = endpoint.keys.create(name="n", scopes=[Scope.QUERY])
    assert endpoint.ask("SELECT 1", password=text).code == 0
    endpoint.keys.revoke(made.key_id)
    assert endpoint.ask("SELECT 1", password=text).code == 516


def test_what_became_of_each_key_is_counted(endpoint: Running) -> None:
    key, text = endpoint.keys.create(name="n", scopes=[Scope.QUERY])
    weak, weak_text = endpoint.keys.create(name="n", scopes=[Scope.INGEST])

    def counted(key_id: str) -> dict[str, int]:
        return {
            f"{name} {labels.get('reason', '')}".strip(): count
            for name, labels, count in endpoint.keys.counts.read()
            if labels["key_id"] == key_id and labels["transport"] == "clickhouse"
        }

    for password in (text, text, weak_text):
        endpoint.ask("SELECT 1", password=password)
    endpoint.keys.revoke(key.key_id)
    endpoint.ask("SELECT 1", password=text)

    assert counted(key.key_id) == {"in": 3, "out": 2, "refused revoked": 1}
    assert counted(weak.key_id) == {"in": 1, "out": 0, "refused scope": 1}
    before = counted("").get("refused unknown", 0)
    endpoint.ask("SELECT 1", password=text + "x")
    assert counted("")["refused unknown"] == before + 1


def test_a_read_token_opens_its_tenant_if_it_is_for_every_meter(endpoint: Running) -> None:
    key = endpoint.keys.create(name="n", scopes=[Scope.QUERY])[0]
    end = 2_000_000_000

    every = make_token(key, tenant_id="tenant_a", meters=None, expires_at_seconds=end)
    some = make_token(key, tenant_id="tenant_a", meters=["m"], expires_at_seconds=end)

    past = make_token(key, tenant_id="tenant_a", meters=None, expires_at_seconds=1)

    counted = "SELECT count() FROM metering.api_keys"
    assert endpoint.ask(counted, password=past).code == 516
    assert endpoint.ask(counted, password=every).text == "1\n"
    assert endpoint.ask(counted, password=some).code == DENIED


def test_without_a_password_there_is_no_administrator(tmp_path: Path, endpoint: Running) -> None:
    access = endpoint.endpoint.app._access  # the one thing that the setting reaches
    password = access._password
    try:
        # Set to nothing, as by a variable that has no value, is not set.
        for access._password in (None, ""):
            for guess in ("", "None", "admin"):
                assert endpoint.ask("SELECT 1", user="admin", password=guess).code == 516
    finally:
        access._password = password


def test_a_key_may_send_what_its_rate_allows(endpoint: Running) -> None:
    text = endpoint.keys.create(name="n", scopes=[Scope.QUERY], rate_limit_per_second=2)[1]

    answers = [endpoint.ask("SELECT 1", password=text) for _ in range(20)]

    refused = [answer for answer in answers if answer.code]
    assert {(answer.status, answer.code) for answer in refused} == {(429, 201)}
    assert int(refused[0].headers["retry-after"]) >= 1


def test_every_table_of_the_engine_has_a_rule_or_cannot_be_read(endpoint: Running) -> None:
    found = endpoint.store.query(
        "SELECT name, engine FROM system.tables WHERE database = 'metering' ORDER BY name"
    )
    tables = {f"metering.{name}" for name, engine in found if engine != "MaterializedView"}

    assert tables - {"metering.made_by_hand"} == set(TENANT_ROWS)
    for name, _ in found:
        allowed = f"metering.{name}" in READABLE
        assert (endpoint.ask(f"SELECT count() FROM metering.{name}").code == 0) is allowed
    for database, name in endpoint.store.query("SELECT database, name FROM system.tables"):
        if database != "metering":
            allowed = f"{database}.{name}" in READABLE
            code = endpoint.ask(f"SELECT 1 FROM {database}.{name} LIMIT 0").code
            assert code == (0 if allowed else DENIED), name


def test_every_function_of_the_engine_is_on_one_of_two_lists(endpoint: Running) -> None:
    allowed = set(ALLOWED.read_text().split())

    assert endpoint.endpoint.app._engine.functions.names == allowed


def test_no_function_that_reaches_out_is_allowed(endpoint: Running) -> None:
    reach_out = "Dictionary", "AI", "Introspection", "Internal", "Machine Learning", "Encryption"
    functions = endpoint.endpoint.app._engine.functions

    for name, category in endpoint.store.query("SELECT name, categories FROM system.functions"):
        if any(each in category for each in reach_out) and name != "caseWithExpression":
            assert not functions.allows(name) or name == "_CAST", name


def test_every_table_function_but_a_few_is_refused(endpoint: Running) -> None:
    names = [name for (name,) in endpoint.store.query("SELECT name FROM system.table_functions")]

    for name in names:
        for spelling in {name, name.upper()}:
            if spelling not in TABLE_FUNCTIONS:
                sql = f"SELECT * FROM {spelling}('a')"
                assert endpoint.ask(sql).code in (DENIED, SYNTAX), spelling
    assert set(names) >= TABLE_FUNCTIONS


def test_readers_wait_for_each_other_and_not_for_the_administrator(endpoint: Running) -> None:
    slow = "SELECT count() FROM numbers(90000000) WHERE NOT ignore(MD5(toString(number)))"
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(endpoint.ask(slow).code)) for _ in range(6)
    ]
    for thread in threads:
        thread.start()

    def running() -> int:
        found = endpoint.admin(
            "SELECT count() FROM system.processes WHERE query LIKE '%MD5%' AND query NOT LIKE '%LIKE%'"
        )
        return int(found.text)

    counts = [eventually(running, lambda count: count >= 2)]
    while any(thread.is_alive() for thread in threads):
        counts.append(running())
    for thread in threads:
        thread.join()
    assert max(counts) <= 4
    assert codes == [159] * 6


def test_who_finds_the_queue_full_is_told_to_come_later(endpoint: Running) -> None:
    app = endpoint.endpoint.app
    room, app._max_reads = app._max_reads, 0
    try:
        answer = endpoint.ask("SELECT 1")
    finally:
        app._max_reads = room

    assert (answer.status, answer.code) == (503, 202)
    assert endpoint.ask("SELECT 1").code == 0


def test_a_statement_ends_when_its_client_leaves(
    tmp_path_factory: pytest.TempPathFactory, endpoint: Running
) -> None:
    import socket

    marked = (
        "SELECT count() FROM numbers(90000000) "
        "WHERE NOT ignore(SHA512(repeat(toString(number), 100)), 'leaving')"  # a minute
    )

    def running() -> Any:
        sql = "SELECT count() FROM system.processes WHERE query LIKE '%leaving%' AND query NOT LIKE '%LIKE%'"
        return int(endpoint.admin(sql).text)

    slow = endpoint.endpoint.app._engine._limits
    object.__setattr__(slow, "seconds", 60.0)
    try:
        with socket.create_connection(("127.0.0.1", endpoint.port)) as client:
            client.sendall(
                (
                    f"POST /?user=grafana_reader&password={endpoint.key()} HTTP/1.1\r\nHost: x\r\n"
                    f"Content-Length: {len(marked)}\r\n\r\n{marked}"
                ).encode()
            )
            eventually(running, lambda count: count == 1)
        eventually(running, lambda count: count == 0, seconds=5)
    finally:
        object.__setattr__(slow, "seconds", 1.0)
