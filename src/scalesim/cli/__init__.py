"""``scalesim``: ``demo``, ``doctor``, ``generate``, ``replay``, ``convert``, ``plan``, ``profile``,
``check``, ``serve``, ``run``.

``main`` parses, runs one command and turns what goes wrong into an exit code: 0 done, 1 a check
failed (demo, doctor, check), 2 the user's mistake, 130 interrupted, 141 nobody reads what is
printed. A mistake is one line on stderr, and a traceback is a fault of ScaleSim's. Importing this
loads neither torch nor the parser; the options are the dataclasses of ``options``.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module

from scalesim._version import __version__
from scalesim.errors import ScaleSimError
from scalesim.interrupts import LostInterrupts

__all__ = ["main"]

DONE, CHECK_FAILED, USER_ERROR, INTERRUPTED, NOBODY_READS = 0, 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command in ``argv`` (the process's arguments if ``None``), and return the exit code.

    Raises ``SystemExit`` with 0 after ``--help``.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character outside the encoding must not raise
            stream.reconfigure(errors="backslashreplace")
    try:
        with LostInterrupts():
            code = _run(args or ["--help"])
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        let_go_of_stdout()
        return NOBODY_READS
    except ScaleSimError as error:
        say_error(error)
    except OSError as error:  # a full disk, a folder without permission
        place = "" if error.filename is None else f"{error.filename}: "
        say_error(f"{place}{error.strerror or error}")
    except MemoryError as error:
        say_error(f"out of memory; ask for less: {error}")
    except KeyboardInterrupt:
        with suppress(BrokenPipeError):
            print("scalesim: interrupted", file=sys.stderr)
        return INTERRUPTED
    return USER_ERROR


def say_error(error: object) -> None:
    """Print an error as one line on stderr, without control characters."""
    line = " ".join(str(error).split())
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
    with suppress(BrokenPipeError):
        print(f"scalesim: error: {line}", file=sys.stderr)


def let_go_of_stdout() -> None:
    """Redirect stdout to nowhere: flushing its buffer at exit would fail again."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _run(args: list[str]) -> int:
    if args == ["--version"]:
        print(f"scalesim {__version__}")
        return DONE
    from scalesim.cli.options import parse

    options, command = parse(args), args[0]
    run: Callable[[object], int] = getattr(import_module(f"scalesim.cli.{command}"), command)
    return run(options)
