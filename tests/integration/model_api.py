"""A local stand-in for the HTTP API of a language model's provider."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORDS = ["one", "two", "three"]


class _Models(BaseHTTPRequestHandler):
    """Answers each prompt of n characters with n input tokens and as many output tokens as WORDS."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path.endswith("/embeddings"):
            usage = {"prompt_tokens": len(body["input"]), "total_tokens": len(body["input"])}
            data = [{"object": "embedding", "index": 0, "embedding": [0.5]}]
            self.answer({"object": "list", "model": "e-1", "data": data, "usage": usage})
            return
        prompt = body["messages"][0]["content"]
        if prompt == "fail":
            self.answer({"error": {"message": "no"}}, 400)
            return
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(WORDS), "total_tokens": 0}
        if body.get("stream"):
            self.stream(body, usage)
            return
        message = {"role": "assistant", "content": " ".join(WORDS)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.answer(self.part("chat.completion", [choice], usage=usage))

    def stream(self, body: dict[str, object], usage: dict[str, int]) -> None:
        parts = [
            self.part("chat.completion.chunk", [{"index": 0, "delta": {"content": word}}])
            for word in WORDS
        ]
        if body.get("stream_options") == {"include_usage": True}:
            parts.append(self.part("chat.completion.chunk", [], usage=usage))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for part in parts:
            self.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
            self.wfile.flush()
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def part(self, kind: str, choices: list[object], **more: object) -> dict[str, object]:
        return {
            "id": "c",
            "object": kind,
            "created": 1,
            "model": "m-1-2026",
            "choices": choices,
            **more,
        }

    def answer(self, content: object, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


@contextmanager
def running_models() -> Iterator[str]:
    """Serve until the block ends; the base URL of the API."""
    with _Server(("127.0.0.1", 0), _Models) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()
