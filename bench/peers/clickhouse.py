"""As much of ClickHouse's HTTP interface as the rivals' exporters need, in front of chDB.

Only for measurements: there is no ClickHouse server where these run. An INSERT is done before it is answered,
one after the other, each as one part; `async_insert` is read over. Bodies may be compressed by gzip, or in
ClickHouse's own blocks (LZ4 or none), whose checksums are not looked at.

clickhouse-go (`conn_http.go`) first asks for revision and time zone. chDB writes and reads Native blocks without
block info, as revision 0 has them; so revision 0 is what is answered, in the one block that is encoded here.
"""

import gzip
import json
import sys
import tempfile
import threading
import traceback
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import lz4.block
from chdb.session import Session

VERSION = "26.9.2.1"
_HEADER = (
    16 + 1 + 4 + 4
)  # checksum, method, compressed size with this header but the checksum, size
_LZ4, _NONE = 0x82, 0x02


def decompressed(body: bytes) -> bytes:
    """ClickHouse's compressed blocks, one after the other."""
    parts, at = [], 0
    while at < len(body):
        method = body[at + 16]
        compressed = int.from_bytes(body[at + 17 : at + 21], "little")
        size = int.from_bytes(body[at + 21 : at + 25], "little")
        data = body[at + _HEADER : at + 16 + compressed]
        if method == _LZ4:
            parts.append(lz4.block.decompress(data, uncompressed_size=size))
        elif method == _NONE:
            parts.append(data)
        else:
            raise ValueError(f"compression method {method:#x}")
        at += 16 + compressed
    return b"".join(parts)


def hello() -> bytes:
    """The answer to `SELECT displayName(), version(), revision(), timezone()`, for revision 54460."""

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    def column(name: str, kind: str, value: bytes) -> bytes:
        return text(name) + text(kind) + b"\0" + value

    info = bytes([1, 0, 2]) + b"\xff\xff\xff\xff" + bytes([0])
    columns = (
        column("displayName()", "String", text("chdb")),
        column("version()", "String", text(VERSION)),
        column("revision()", "UInt32", bytes(4)),
        column("timezone()", "String", text("UTC")),
    )
    return info + bytes([len(columns), 1]) + b"".join(columns)


class Engine:
    """One chDB, used by one thread at a time."""

    def __init__(self, folder: str) -> None:
        self._session = Session(folder)
        self._lock = threading.Lock()

    def insert(self, statement: str, form: str, data: bytes) -> None:
        with self._lock, self._session.send_insert(statement, form) as inserter:
            inserter.append(data)
            inserter.finish()

    def query(self, sql: str, form: str) -> bytes:
        with self._lock:
            answer: bytes = self._session.query(sql, form).bytes()
            return answer


class Handler(BaseHTTPRequestHandler):
    """POST: SQL in the body, or an INSERT in the parameter `query` and its data in the body."""

    protocol_version = "HTTP/1.1"
    engine: Engine

    def do_POST(self) -> None:
        body = self._body()
        parameters = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))
        try:
            self._answer(200, self._run(parameters, body))
        except Exception as error:  # noqa: BLE001  # whatever it was, the client must hear of it
            traceback.print_exc()
            self._answer(500, f"Code: 1. DB::Exception: {error}".encode())

    def _run(self, parameters: dict[str, str], body: bytes) -> bytes:
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if parameters.get("decompress") == "1":
            body = decompressed(body)
        if "query" not in parameters:
            return self._query(body.decode(), parameters)
        statement = parameters["query"].strip()
        if not statement.upper().startswith("INSERT"):
            return self._query(statement, parameters)
        insert, _, form = statement.rpartition(" FORMAT ")
        if body:
            self.engine.insert(_in_database(insert, parameters), form.strip(), body)
        return b""

    def _query(self, sql: str, parameters: dict[str, str]) -> bytes:
        if "revision()" in sql:
            return hello()
        if sql.startswith("SELECT timezone(), version()"):
            raise ValueError("ask for displayName(), version(), revision(), timezone()")
        return self.engine.query(sql, parameters.get("default_format", "TabSeparated"))

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return self.rfile.read(int(self.headers.get("content-length", "0")))
        parts = []
        while size := int(self.rfile.readline().strip(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _in_database(insert: str, parameters: dict[str, str]) -> str:
    """`INSERT INTO table (...)` with its database before the table, if it names none."""
    head, _, rest = insert.partition("INTO ")
    table = rest.split("(")[0].strip()
    if "." in table or "database" not in parameters:
        return insert
    return f"{head}INTO {parameters['database']}.{rest}"


def main() -> None:
    """`python -m bench.peers.clickhouse`: prints its address, then serves until it is ended."""
    statements = json.loads(sys.stdin.readline() or "[]")
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(folder)
        for statement in ("CREATE DATABASE IF NOT EXISTS otel", *statements):
            engine.query(statement, "Null")
        Handler.engine = engine
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        print(f"127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
