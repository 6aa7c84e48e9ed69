"""The local server of the page: this machine only, a random port and a random token in the address.

A request is refused (403) unless its path begins with the token, which no other program or page knows, and
its Host is this server's own, so that no name elsewhere can be pointed at it (DNS rebinding). The web socket
asks for both too, and for an Origin that is the page itself. Everything that the page loads comes from here.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from typing import Any

from bokeh.server.server import BaseServer
from bokeh.server.tornado import BokehTornado
from panel.io.application import build_applications
from panel.io.resources import DIST_DIR
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.routing import Router
from tornado.web import Application, RequestHandler, StaticFileHandler

from kolmo.errors import InputError
from kolmo.explore.page import Page

_ADDRESS = "127.0.0.1"


class _Refusal(RequestHandler):
    """403 in plain words, whatever was asked."""

    def prepare(self) -> None:
        self.set_status(403)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish("Refused: open the address that kolmo explore printed, with its token.\n")


class Guard(Router):
    """Passes on to `application` what has the token and the right Host, and refuses the rest."""

    def __init__(self, application: Application, token: str, hosts: frozenset[str]) -> None:
        self._application, self._token, self._hosts = application, token.encode(), hosts
        self._refusals = Application([(r".*", _Refusal)])

    def allows(self, request: HTTPServerRequest) -> bool:
        """Whether a request is the page's own."""
        first = (request.path or "").split("/")[1:2]
        given = first[0].encode() if first else b""
        return hmac.compare_digest(given, self._token) and request.host in self._hosts

    def find_handler(self, request: HTTPServerRequest, **keywords: Any) -> Any:
        chosen = self._application if self.allows(request) else self._refusals
        return chosen.find_handler(request, **keywords)


class Server:
    """A server that listens on this machine; port 0: any that is free. Raises InputError where it is taken.

    The present thread's event loop serves it: `url` may be asked for when `io_loop` runs.
    """

    def __init__(self, port: int = 0) -> None:
        if not 0 <= port < 2**16:
            raise InputError(f"--port: {port} is not between 0 and 65535")
        try:
            listener = socket.create_server((_ADDRESS, port))
        except OSError as error:
            raise InputError(f"--port: {port} cannot be had: {error.strerror or error}") from error
        self.token, self.port = secrets.token_urlsafe(24), int(listener.getsockname()[1])
        hosts = [f"{name}:{self.port}" for name in (_ADDRESS, "localhost")]
        application = BokehTornado(
            build_applications(_page, title="Kolmo"),
            prefix=self.token,
            extra_websocket_origins=hosts,
            extra_patterns=[(r"/(favicon\.ico)", StaticFileHandler, {"path": str(DIST_DIR / "images")})],
        )
        http = HTTPServer(Guard(application, self.token, frozenset(hosts)))
        listener.setblocking(False)
        http.add_socket(listener)
        self.io_loop = IOLoop.current()
        self._server = BaseServer(self.io_loop, application, http)
        self._server.start()

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{_ADDRESS}:{self.port}/{self.token}/"

    def stop(self) -> None:
        """Listen no longer."""
        self._server.stop(wait=False)


def _page() -> Any:
    return Page().view()
