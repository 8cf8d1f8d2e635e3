"""``scalesim``: ``demo``, ``doctor``, ``generate``, ``replay``, ``convert``, ``plan``, ``profile``,
``check``.

``main`` parses, runs one command and turns what goes wrong into an exit code: 0 done, 1 a check
failed (demo, doctor), 2 the user's mistake (one line on stderr), 130 interrupted. Importing this
loads neither torch nor the parser; the options are the dataclasses of ``options``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from scalesim._version import __version__
from scalesim.errors import ScaleSimError

__all__ = ["main"]

DONE, CHECK_FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` (the process's own if ``None``) asks for: the exit code.

    Raises ``SystemExit`` for ``--help`` and for options that do not parse.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if args == ["--version"]:
        print(f"scalesim {__version__}")
        return DONE
    try:
        return _run(args or ["--help"])
    except ScaleSimError as error:
        print(f"scalesim: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("scalesim: interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(args: list[str]) -> int:
    from scalesim.cli.options import (
        CheckOptions,
        ConvertOptions,
        DemoOptions,
        DoctorOptions,
        PlanOptions,
        ProfileOptions,
        ReplayOptions,
        parse,
    )

    options = parse(args)
    if isinstance(options, DemoOptions):
        from scalesim.cli.demo import demo

        return demo(options)
    if isinstance(options, DoctorOptions):
        from scalesim.cli.doctor import doctor

        return doctor(options)
    if isinstance(options, PlanOptions):
        from scalesim.cli.plan import plan

        return plan(options)
    if isinstance(options, ProfileOptions):
        from scalesim.cli.profile import profile

        return profile(options)
    if isinstance(options, ReplayOptions):
        from scalesim.cli.replay import replay

        return replay(options)
    if isinstance(options, ConvertOptions):
        from scalesim.cli.convert import convert

        return convert(options)
    if isinstance(options, CheckOptions):
        from scalesim.cli.check import check

        return check(options)
    from scalesim.cli.generate import generate

    return generate(options)
