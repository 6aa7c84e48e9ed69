"""`kolmo explore`: serve the page until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import webbrowser
from importlib.util import find_spec

from kolmo.errors import InputError

#: seconds that a training has to come to its end when the page is closed
_PATIENCE = 3.0


def command(options: argparse.Namespace) -> int:
    """Print the page's address, open it unless told not to, and serve. Raises InputError where the port is
    taken or the page's libraries are missing."""
    for library in ("panel", "bokeh"):
        if find_spec(library) is None:
            raise InputError(f"explore: {library} is not installed; pip install 'kolmo[explore]'")
    from kolmo.explore.server import Server
    from kolmo.explore.work import end, prepare, start

    # a tab that is closed while it is told something is nothing to report
    for name in ("panel", "bokeh.server.views.ws"):
        logging.getLogger(name).setLevel(logging.ERROR)
    server = Server(options.port)
    start(prepare)
    print(f"kolmo: the page is at {server.url} (this machine only; Ctrl-C ends it)", flush=True)
    if options.browser:
        server.io_loop.add_callback(webbrowser.open, server.url)
    ended = False
    with contextlib.suppress(KeyboardInterrupt):
        server.io_loop.start()
    with contextlib.suppress(KeyboardInterrupt):  # who cannot wait presses it again
        server.stop()
        ended = end(_PATIENCE)
    print("kolmo: the page is closed", flush=True)
    if not ended:
        sys.stderr.flush()
        os._exit(0)  # not by way of the interpreter's end, see `end`
    return 0
