"""The command line: `kolmo reproduce | evaluate | compare | experiment | verify | bench | explore | export
| fields | config | completion | doctor`.

Exit codes: 0 done (and every claim or check holds), 1 one does not hold or estimators differ,
2 bad input or a refusal (one line says which), 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from kolmo.errors import EXIT_ERROR, EXIT_INTERRUPTED, KolmoError
from kolmo.parser import build
from kolmo.profile import printed, section
from kolmo.text import one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; every expected failure becomes one line on standard error and exit code 2."""
    parser = build()
    try:
        options = parser.parse_args(arguments)
        if options.command is None:
            parser.print_help()
            return 0
        # doctor has to answer where nothing else can be imported
        with printed(options.profile, outside=options.command != "doctor"):
            return _run(options)
    except KolmoError as error:
        print(f"kolmo: {one_line(error)}", file=sys.stderr)
        return EXIT_ERROR
    except MemoryError:
        print("kolmo: out of memory; take fewer cells, paths, layers or units", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("kolmo: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return EXIT_ERROR
    except OSError as error:  # a compiler's cache on a full disk, say: our own files have errors of their own
        where = f"{error.filename}: " if error.filename else ""
        print(f"kolmo: {one_line(where + (error.strerror or str(error)))}", file=sys.stderr)
        return EXIT_ERROR
    except Exception as error:  # a fault of Kolmo's own: it is said, and no traceback buries it
        if os.environ.get("KOLMO_TRACEBACK"):
            raise
        print(
            f"kolmo: internal error, please report it with what KOLMO_TRACEBACK=1 prints: "
            f"{type(error).__name__}: {one_line(error, 300)}",
            file=sys.stderr,
        )
        return EXIT_ERROR


def _run(options: argparse.Namespace) -> int:
    if options.command == "doctor":  # has to answer where torch itself is broken
        from kolmo import doctor

        report = doctor.report()
        print(json.dumps(report, indent=1) if options.json else "\n".join(doctor.lines(report)))
        return 0
    # imported here: `kolmo --help` should not wait for torch
    with section("imports"):
        from kolmo import commands, evaluation

    commands.quiet_libraries()
    commands.set_threads()
    if options.command == "verify":
        from kolmo.verify.command import command

        return command(options)
    if options.command == "completion":
        from kolmo.completion import script

        print(script(build(), options.shell))
        return 0
    if options.command == "export":
        from kolmo.export.command import command as export

        return export(options)
    if options.command == "fields":
        from kolmo.fields import command as fields

        return fields(options)
    if options.command == "config":
        from kolmo.configuring import command as configure

        return configure(options)
    if options.command == "explore":
        from kolmo.explore.command import command as explore

        return explore(options)
    if options.command == "bench":
        from kolmo.benchmarks.run import command as bench

        return bench(options)
    handler = {
        "reproduce": commands.reproduce,
        "evaluate": evaluation.evaluate,
        "compare": evaluation.compare,
        "experiment": commands.experiment,
    }[options.command]
    return handler(options)


if __name__ == "__main__":
    sys.exit(main())
