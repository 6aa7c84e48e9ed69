"""`kolmo explore`: serve the page until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import logging
import threading
import webbrowser
from importlib.util import find_spec

from kolmo.errors import InputError


def command(options: argparse.Namespace) -> int:
    """Print the page's address, open it unless told not to, and serve. Raises InputError where the port is
    taken or the page's libraries are missing."""
    for library in ("panel", "bokeh"):
        if find_spec(library) is None:
            raise InputError(f"explore: {library} is not installed; pip install 'kolmo[explore]'")
    from kolmo.explore.server import Server
    from kolmo.explore.work import prepare

    # a tab that is closed while it is told something is nothing to report
    for name in ("panel", "bokeh.server.views.ws"):
        logging.getLogger(name).setLevel(logging.ERROR)
    server = Server(options.port)
    threading.Thread(target=prepare, daemon=True).start()
    print(f"kolmo: the page is at {server.url} (this machine only; Ctrl-C ends it)", flush=True)
    if options.browser:
        server.io_loop.add_callback(webbrowser.open, server.url)
    with contextlib.suppress(KeyboardInterrupt):
        server.io_loop.start()
    server.stop()
    print("kolmo: the page is closed")
    return 0
