"""A page on the loopback interface in which a person plays; the standard library serves it.

A server was chosen over precomputed rollouts in the report because it has no last step: a tree of eight latent actions
has 4,680 frames after four steps already, megabytes for each frame to start from, and the world model needs some
hundredths of a second for a frame.
"""

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jinja2

from lapo_cli.core.errors import UsageError
from lapo_cli.core.play.session import Session

_HOST = "127.0.0.1"
_HEADER = "X-Lapo"
_MOST_BYTES = 1000


class Server(ThreadingHTTPServer):
    """Serves one session.

    Args:
        session: what is played.
        title: of the page.
        port: to listen on; 0 for any that is free.

    Raises:
        UsageError: the port is taken.
    """

    daemon_threads = True

    def __init__(self, session: Session, title: str, port: int = 0) -> None:
        self.session, self.busy = session, threading.Lock()
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("lapo_cli.core.play", "."), autoescape=True, undefined=jinja2.StrictUndefined
        )
        self.page = environment.get_template("page.html.j2").render(title=title, session=session).encode()
        try:
            super().__init__((_HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UsageError(f"Port {port} cannot be listened on ({error}): choose another --port.") from error

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{_HOST}:{self.server_address[1]}/"


class _Handler(BaseHTTPRequestHandler):
    """``GET /`` is the page, ``GET /frame`` the present frame, and ``POST /`` does something and says where one is."""

    server: Server

    def do_GET(self) -> None:
        """See the class."""
        path = self.path.partition("?")[0]
        if not self._from_here():
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"This page is for this machine alone.")
        elif path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        elif path == "/frame":
            with self.server.busy:
                picture = self.server.session.picture
            self._send(HTTPStatus.OK, "image/webp", picture)
        else:
            self._send(HTTPStatus.NOT_FOUND, "text/plain", b"There is no such page.")

    def do_POST(self) -> None:
        """See the class."""
        # No page of another site can set this header without being asked whether it may, which is not answered here.
        if not self._from_here() or _HEADER not in self.headers:
            self._send(HTTPStatus.FORBIDDEN, "text/plain", b"This page is for this machine alone.")
            return
        try:
            length = int(self.headers.get("Content-Length", 0))
            asked = json.loads(self.rfile.read(min(length, _MOST_BYTES)))
            action, cluster = str(asked["do"]), int(asked.get("cluster", -1))
        except (ValueError, KeyError, TypeError, AttributeError):
            self._send(HTTPStatus.BAD_REQUEST, "text/plain", b"That is no action.")
            return
        session = self.server.session
        with self.server.busy:
            if action == "act":
                session.act(cluster)
            elif action == "back":
                session.back()
            elif action == "restart":
                session.restart()
            steps = session.steps
        self._send(HTTPStatus.OK, "application/json", json.dumps({"steps": steps}).encode())

    def _from_here(self) -> bool:
        """Whether the browser asked for this machine by its own name, and not for a site that points here."""
        port = self.server.server_address[1]
        return self.headers.get("Host") in (f"{_HOST}:{port}", f"localhost:{port}")

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged."""
