"""A view in the browser, served by a command on this machine."""

from __future__ import annotations

import json
import secrets
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from augfpn.errors import UserError
from augfpn.visuals.interactive.view import View

_LONGEST_REQUEST = 1_000_000


class ViewServer(ThreadingHTTPServer):
    """Serves a view on the loopback address, to whoever has the link with its token.

    Attributes:
        link: what to open.
    """

    daemon_threads = True

    def __init__(self, view: View, port: int = 0) -> None:
        self.view = view
        self.token = secrets.token_urlsafe(16)
        # Models and files are asked by one request at a time.
        self.lock = Lock()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserError(f"Port {port} cannot be used ({error.strerror}); name another one (--port).") from error
        self.link = f"http://127.0.0.1:{self.server_port}/?token={self.token}"


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        given = parse_qs(address.query).get("token", [""])[0]
        if address.path != "/" or not self._may(given):
            self._send(HTTPStatus.FORBIDDEN, "Open the link that the command printed.", "text/plain")
            return
        self._send(HTTPStatus.OK, self.server.view.to_served_html(self.server.token), "text/html")

    def do_POST(self) -> None:
        given = self.headers.get("Content-Length", "")
        length = int(given) if given.isascii() and given.isdigit() else _LONGEST_REQUEST + 1
        if not self._may(self.headers.get("Authorization", "").removeprefix("Bearer ")) or length > _LONGEST_REQUEST:
            self._send(HTTPStatus.FORBIDDEN, "{}", "application/json")
            return
        try:
            with self.server.lock:
                content: dict[str, Any] = {"answer": self.server.view.answer(json.loads(self.rfile.read(length)))}
        except UserError as error:
            content = {"error": str(error)}
        except Exception as error:  # the reader would see nothing otherwise
            content = {"error": f"{type(error).__name__}: {error}"}
        self._send(HTTPStatus.OK, json.dumps(content), "application/json")

    def _may(self, token: str) -> bool:
        return secrets.compare_digest(token.encode(), self.server.token.encode())

    def _send(self, status: HTTPStatus, content: str, kind: str) -> None:
        body = content.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        # A page that was closed or went on does not wait for its answer.
        with suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a line for every image would hide the link."""
