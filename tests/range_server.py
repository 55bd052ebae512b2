"""An HTTP server on this machine that serves byte ranges, and misbehaves as a test tells it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class RangeServer:
    """files: path -> content; tags: path -> entity tag; plan: what becomes of the next requests, one each.

    A plan's entry is called with the request's handler instead of serving the file. requests: (path, Range, If-Range).
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.plan: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.requests: list[tuple[str, str | None, str | None]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.requests.append((self.path, self.headers["Range"], self.headers["If-Range"]))
                (owner.plan.pop(0) if owner.plan else owner.serve)(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self, handler: BaseHTTPRequestHandler, most: int | None = None) -> None:
        """The file, or the range asked for of the version asked for; cut off after *most* bytes."""
        content = self.files.get(handler.path)
        if content is None:
            return answer(handler, 404, b"not here")
        tag = self.tags.get(handler.path, '"1"')
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers["Range"] or "")
        start = int(asked[1]) if asked and handler.headers["If-Range"] in (None, tag) else 0
        if start and start >= len(content):
            return answer(handler, 416, b"")
        headers = {"ETag": tag, "Content-Length": len(content) - start}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return answer(handler, 206 if start else 200, content[start:][:most], headers)


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, object] | None = None) -> None:
    """Send *body*; where *headers* say nothing else, with its length."""
    handler.send_response(status)
    for name, value in (headers if headers is not None else {"Content-Length": len(body)}).items():
        handler.send_header(name, str(value))
    handler.end_headers()
    handler.wfile.write(body)
