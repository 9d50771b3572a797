"""What clients of ClickHouse send, and what they are answered."""

import gzip
import json
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import clickhouse_connect
import lz4.frame
import pyarrow as pa
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError
from clickhouse_connect.driver.external import ExternalData

from receiver.store import tables
from receiver.store.client import ReadLimitError, ReadLimits, Store, StoreError
from tests.integration.clickhouse_endpoint import ADMIN_PASSWORD, READER, Running, running_endpoint
from tests.waiting import eventually


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_endpoint(tmp_path_factory.mktemp("engine")) as running:
        running.store.execute(
            "INSERT INTO metering.events (event_id, tenant_id, meter, quantity, timestamp) SELECT generateUUIDv4(), "
            "'acme', 'api.calls', number, toDateTime64('2026-01-05 00:00:00', 9, 'UTC') + number FROM numbers(1000)"
        )
        yield running


def connect(endpoint: Running, **options: Any) -> Any:
    return clickhouse_connect.get_client(
        host="127.0.0.1",
        port=endpoint.port,
        username=READER,
        password=endpoint.key(),
        **options,
    )


@pytest.mark.parametrize("compress", [True, False, "lz4", "zstd", "gzip"])
def test_clickhouse_connect_reads_rows_frames_and_arrow(endpoint: Running, compress: Any) -> None:
    client = connect(endpoint, compress=compress, database="metering")
    sql = "SELECT tenant_id, quantity, timestamp FROM events ORDER BY timestamp LIMIT 500"

    rows = client.query(sql).result_rows

    assert [int(row[1]) for row in rows] == list(range(500))
    assert client.query_arrow(sql).num_rows == 500
    assert client.query_df(sql).shape == (500, 3)
    with client.query_row_block_stream("SELECT number FROM numbers(200000)") as stream:
        assert sum(len(block) for block in stream) == 200_000
    assert client.query("SELECT tenant_id FROM events WHERE 0").column_names == ("tenant_id",)
    assert client.command("SELECT count() FROM events") == 1_000
    assert client.ping()
    client.close()


@pytest.mark.parametrize("is_form", [True, False])
def test_parameters_arrive_as_they_were_given(endpoint: Running, is_form: bool) -> None:
    client = connect(endpoint, form_encode_query_params=is_form)
    text = 'it\'s\ta \\ "x" \n {y:String} é \U0001f600'
    given = {"a": text, "b": [text, "'"], "n": None, "d": 3, "unused": "x"}
    sql = "SELECT {a:String}, {b:Array(String)}, {n:Nullable(String)}, {d:Int64}"

    assert client.query(sql, parameters=given).result_rows == [(text, [text, "'"], None, 3)]
    assert (
        client.query("SELECT number FROM numbers(9) LIMIT {n:UInt8}", parameters={"n": 2}).row_count
        == 2
    )


def test_settings_of_clickhouse_connect_are_taken_or_refused(endpoint: Running) -> None:
    client = connect(
        endpoint, settings={"max_execution_time": 5, "session_timezone": "Europe/Rome"}
    )

    assert client.query("SELECT toString(toDateTime(0))").result_rows == [("1970-01-01 01:00:00",)]
    with pytest.raises(DatabaseError, match="READONLY"):
        client.query("SELECT 1", settings={"max_rows_to_group_by": 1})


FORMATS: dict[str, Callable[[bytes], Any]] = {
    "JSON": lambda raw: [list(row.values()) for row in json.loads(raw)["data"]],
    "JSONCompact": lambda raw: json.loads(raw)["data"],
    "JSONEachRow": lambda raw: [list(json.loads(line).values()) for line in raw.splitlines()],
    "CSV": lambda raw: [json.loads(f"[{line}]") for line in raw.decode().splitlines()],
    "TabSeparated": lambda raw: [
        [int(a), b] for a, b in (x.split("\t") for x in raw.decode().splitlines())
    ],
    "TabSeparatedWithNamesAndTypes": lambda raw: [
        [int(a), b] for a, b in (x.split("\t") for x in raw.decode().splitlines()[2:])
    ],
    "ArrowStream": lambda raw: [
        list(row.values()) for row in pa.ipc.open_stream(raw).read_all().to_pylist()
    ],
    "RowBinaryWithNamesAndTypes": lambda raw: None,
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("way", ["clause", "parameter", "header"])
def test_the_format_is_the_one_that_was_asked_for(endpoint: Running, name: str, way: str) -> None:
    sql = "SELECT number AS a, toString(number) AS b FROM numbers(2)"
    answer = {
        "clause": lambda: endpoint.ask(f"{sql} FORMAT {name}", default_format="XML"),
        "parameter": lambda: endpoint.ask(sql, default_format=name),
        "header": lambda: endpoint.ask(sql, headers={"X-ClickHouse-Format": name}),
    }[way]()

    assert answer.code == 0
    assert answer.headers["x-clickhouse-format"] == name
    found = FORMATS[name](answer.body)
    if (
        found is None
    ):  # RowBinary: 2 names, 2 types, then the rows, as ClickHouse's documentation says
        assert answer.body == b"\x02\x01a\x01b\x06UInt64\x06String" + b"".join(
            number.to_bytes(8, "little") + b"\x01" + str(number).encode() for number in (0, 1)
        )
    else:
        assert [[int(a), str(b)] for a, b in found] == [[0, "0"], [1, "1"]]


def test_a_statement_comes_in_the_url_in_the_body_or_in_both(endpoint: Running) -> None:
    assert endpoint.ask("SELECT 1", method="GET").text == "1\n"
    assert endpoint.ask("SELECT 1 AS x FORMAT JSONEachRow").text == '{"x":1}\n'
    assert endpoint.ask("number FROM numbers(2)", query="SELECT").text == "0\n1\n"
    assert endpoint.ask("  SELECT 1 ;  ").text == "1\n"
    key = endpoint.key()
    for headers in (
        {
            "X-ClickHouse-User": READER,
            "X-ClickHouse-Key": key,
            "X-ClickHouse-SSL-Certificate-Auth": "off",
        },
        {"Authorization": f"Bearer {key}"},
    ):
        assert endpoint.send("POST", "/", b"SELECT 1", headers).text == "1\n"
    assert endpoint.send("GET", f"/?user={READER}&password={key}&query=SELECT%201").text == "1\n"
    form = {"Content-Type": "application/x-www-form-urlencoded", "Authorization": f"Bearer {key}"}
    assert endpoint.send("POST", "/", b"SELECT 1", form).text == "1\n"


def test_who_looks_whether_it_is_there_needs_no_key(endpoint: Running) -> None:
    for path in ("/", "/ping", "/replicas_status"):
        assert (endpoint.send("GET", path).status, endpoint.send("GET", path).text) == (
            200,
            "Ok.\n",
        )
    assert endpoint.send("HEAD", "/ping").body == b""
    assert endpoint.send("GET", "/play").status == 404


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "lz4": lz4.frame.compress,
}


@pytest.mark.parametrize("encoding", COMPRESSORS)
def test_a_statement_may_be_compressed_and_is_bounded(endpoint: Running, encoding: str) -> None:
    compress, headers = COMPRESSORS[encoding], {"Content-Encoding": encoding}

    assert endpoint.ask(compress(b"SELECT 1"), headers=headers).text == "1\n"
    assert endpoint.ask(compress(b"SELECT 1")[:-3], headers=headers).code == 271
    assert endpoint.ask(b"SELECT 1", headers=headers).code == 271
    assert endpoint.ask(compress(b" " * 2**22), headers=headers).code == 307
    assert endpoint.ask(b"SELECT 1", headers={"Content-Encoding": "br"}).code == 89


def test_an_answer_is_compressed_for_who_can_read_it(endpoint: Running) -> None:
    sql = "SELECT number FROM numbers(10000)"
    plain = endpoint.ask(sql)

    assert "content-encoding" not in plain.headers
    packed = endpoint.ask(sql, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.body == plain.body
    refused = endpoint.ask(sql, headers={"Accept-Encoding": "gzip"}, enable_http_compression=0)
    assert "content-encoding" not in refused.headers


def test_clickhouse_go_s_hello_is_the_block_that_it_decodes(endpoint: Running) -> None:
    # clickhouse-go, lib/proto/block.go: block info, columns, rows; then name, type, serialization, data.
    sql = "SELECT displayName(), version(), revision(), timezone()"
    sent: dict[str, Any] = {
        "default_format": "Native",
        "client_protocol_version": 54460,
        "max_execution_time": 65,
    }
    names = endpoint.rows("SELECT displayName(), version(), timezone()")[0]

    answer = endpoint.ask(sql, **sent, database="metering")

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    assert answer.body == b"".join(
        [
            b"\x01\x00\x02\xff\xff\xff\xff\x00\x04\x01",
            *(text("displayName()"), text("String"), b"\x00", text(names[0])),
            *(text("version()"), text("String"), b"\x00", text(names[1])),
            *(text("revision()"), text("UInt32"), b"\x00", b"\x00\x00\x00\x00"),
            *(text("timezone()"), text("String"), b"\x00", text(names[2])),
        ]
    )
    assert endpoint.ask("SELECT 1", **sent).body == b"\x01\x01\x011\x05UInt8\x01"
    empty = endpoint.ask("SELECT 1 AS a, 'x' AS b WHERE 0", **sent)
    assert empty.body == b"\x02\x00\x01a\x05UInt8\x01b\x06String"


def test_what_a_tool_asks_to_find_its_way(endpoint: Running) -> None:
    assert endpoint.rows("SHOW DATABASES") == [["metering"]]
    assert ["events"] in endpoint.rows("SHOW TABLES")
    assert endpoint.rows("SHOW TABLES FROM metering LIKE 'usage_d%'") == [
        ["usage_day"],
        ["usage_day_view"],
    ]
    assert endpoint.rows("SELECT name FROM system.databases") == [["metering"]]
    columns = endpoint.rows(
        "SELECT name, type FROM system.columns WHERE table = 'quotas' ORDER BY position"
    )
    described = endpoint.rows("DESC TABLE metering.quotas")
    assert columns == [row[:2] for row in described]
    assert columns[0] == ["quota_id", "String"]
    assert len(endpoint.rows("SHOW COLUMNS FROM quotas FROM metering")) == len(columns)
    assert endpoint.rows("EXISTS TABLE metering.events") == [[1]]
    assert "ENGINE = MergeTree" in endpoint.ask("SHOW CREATE TABLE metering.events").text
    assert endpoint.rows("SELECT DISTINCT database FROM system.tables") == [["metering"]]
    assert len(endpoint.rows("SELECT name FROM system.functions")) > 1_000
    assert endpoint.rows("SELECT currentDatabase(), currentUser()")[0][0] == "metering"


@pytest.mark.parametrize(
    ("sql", "status", "code"),
    [
        ("SELECT", 400, 62),
        ("SELECT no_such_column FROM metering.events", 404, 47),
        ("SELECT no_such_function(1)", 403, 497),
        ("SELECT * FROM metering.no_such_table", 404, 60),
        ("SELECT toUInt8('x')", 400, 6),
        ("SELECT {x:UInt8}", 500, 456),
        ("DROP TABLE metering.events", 500, 164),
        ("SELECT key_hash FROM metering.api_keys", 403, 497),
    ],
)
def test_an_error_has_clickhouse_s_number_and_status(
    endpoint: Running, sql: str, status: int, code: int
) -> None:
    answer = endpoint.ask(sql)

    assert (answer.status, answer.code) == (status, code), answer.text


def test_an_answer_says_which_question_it_is_to(endpoint: Running) -> None:
    assert endpoint.ask("SELECT 1", query_id="mine").headers["x-clickhouse-query-id"] == "mine"
    made = endpoint.ask("SELECT 1", query_id="a\r\nb").headers["x-clickhouse-query-id"]
    assert len(made) == 32


def test_what_is_not_offered_is_said_to_be_so(endpoint: Running) -> None:
    assert endpoint.ask("SELECT 1", compress=1).code == 48
    assert endpoint.ask("SELECT 1", decompress=1).code == 48
    client = connect(endpoint)
    data = ExternalData(file_name="x.csv", fmt="CSV", structure="a Int8", data=b"1")
    with pytest.raises(DatabaseError, match="external data"):
        client.query("SELECT * FROM x", external_data=data)


@pytest.fixture(scope="module")
def through(endpoint: Running) -> Iterator[Store]:
    store = Store(endpoint.url())
    yield store
    store.close()


def test_the_store_reads_streams_and_executes_through_it(endpoint: Running, through: Store) -> None:
    sql = "SELECT toString(event_id) AS id, quantity, timestamp FROM metering.events ORDER BY timestamp"

    assert through.query(sql) == endpoint.store.query(sql)
    assert through.query_table(sql).to_pylist() == endpoint.store.query_table(sql).to_pylist()
    streamed = pa.Table.from_batches(list(through.stream(sql)))
    assert streamed.num_rows == 1_000
    assert streamed["id"].to_pylist() == [row[0] for row in endpoint.store.query(sql)]
    through.execute("CREATE TABLE metering.made (a String, b Int64) ENGINE = Memory")
    through.execute(
        "INSERT INTO metering.made SELECT {a:String}, {b:Int64}", {"a": "it's \\ \n", "b": -3}
    )
    assert through.query("SELECT * FROM metering.made") == [("it's \\ \n", -3)]
    through.execute("DROP TABLE metering.made")
    with pytest.raises(StoreError) as error:
        through.query("SELECT nothing FROM metering.events")
    assert error.value.code == 47


def test_the_store_inserts_each_block_once_through_it(endpoint: Running, through: Store) -> None:
    def rows(number: int) -> pa.Table:
        stamps = pa.array([1_770_000_000_000_000_000] * number, pa.timestamp("ns", "UTC"))
        return pa.table(
            {"tenant_id": ["once"] * number, "meter": ["m"] * number, "timestamp": stamps}
        )

    for token in ("t1", "t1", "t2", "t1"):
        through.insert(tables.EVENTS, rows(70_000), token=token)

    for table in (tables.EVENTS, *tables.ROLLUPS):
        count = "count()" if table == tables.EVENTS else "sum(quantity_count)"
        found = endpoint.store.query(f"SELECT {count} FROM {table} WHERE tenant_id = 'once'")
        assert found[0][0] == 140_000, table


def test_limits_and_cancellation_reach_the_engine(through: Store) -> None:
    slow = "SELECT count() FROM numbers(9000000000) WHERE NOT ignore(MD5(toString(number)))"
    with pytest.raises(ReadLimitError, match="rows"):
        through.query("SELECT count() FROM numbers(100)", limits=ReadLimits(seconds=9, rows=10))
    with pytest.raises(ReadLimitError, match="long"):
        through.query(slow, limits=ReadLimits(seconds=0.2, rows=10**10))
    ended: list[str] = []

    def read() -> None:
        try:
            through.query(slow, limits=ReadLimits(seconds=60, rows=10**10, tag="mine"))
        except ReadLimitError as error:
            ended.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()

    def cancelled() -> bool:
        through.cancel("mine")
        return not thread.is_alive()

    eventually(cancelled, bool, seconds=10)
    assert ended == ["it was cancelled"]


def test_the_administrator_inserts_what_clickhouse_connect_inserts(endpoint: Running) -> None:
    client = clickhouse_connect.get_client(
        host="127.0.0.1",
        port=endpoint.port,
        username="admin",
        password=ADMIN_PASSWORD,
        database="metering",
    )
    client.command(
        "CREATE TABLE put (a Int64, b String, c Nullable(Float64)) ENGINE = MergeTree ORDER BY a"
    )

    summary = client.insert(
        "put", [[1, "x", None], [2, "it's\n", 1.5]], column_names=["a", "b", "c"]
    )
    client.insert_arrow("put", pa.table({"a": [3], "b": ["y"], "c": [2.5]}))
    client.raw_insert("put", ["a", "b"], "4,z\n5,w\n", fmt="CSV")
    client.raw_insert("put", ["a", "b"], gzip.compress(b"6\tv\n"), fmt="TSV", compression="gzip")
    client.command("INSERT INTO put (a, b) VALUES (7, 'u'), (8, 'format t; --')")
    client.command("INSERT INTO put (a) SELECT 9")
    endpoint.admin(
        '-- x\nINSERT INTO metering.put (a, b) SETTINGS async_insert = 0 FORMAT JSONEachRow\n{"a": 10, "b": "s"}'
    )
    endpoint.admin(b"11\tr\n", query="INSERT INTO `metering`.`put` (`a`, b) FORMAT TSV")

    assert summary.written_rows == 2
    assert client.query("SELECT a, b, c FROM put ORDER BY a").result_rows == [
        *((1, "x", None), (2, "it's\n", 1.5), (3, "y", 2.5), (4, "z", None), (5, "w", None)),
        *((6, "v", None), (7, "u", None), (8, "format t; --", None), (9, "", None)),
        *((10, "s", None), (11, "r", None)),
    ]
    assert endpoint.admin("INSERT INTO metering.put (a) VALUES (1)", method="GET").code == 164
    assert endpoint.admin("DROP TABLE metering.put", method="GET").code == 164
    assert endpoint.admin("INSERT INTO FUNCTION file('x') FORMAT CSV\n1").code == 62
    assert endpoint.admin("SELECT b FROM metering.put WHERE a = 8").text == "format t; --\n"
    client.command("DROP TABLE put")
