"""The child process of ``children``: runs probes in order and prints a line of JSON for each.

A probe that raises yields a section with the error. Each probe is imported just before it runs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import TextIO

from scalesim.doctor.findings import Section, Settings, failed, reason_of


def probe(name: str, settings: Settings) -> Section:
    """The section of one probe; never raises."""
    try:
        look: Callable[[Settings], Section] = import_module(f"scalesim.doctor.{name}").probe
        return look(settings)
    except Exception as error:
        return failed(name, reason_of(error))


def main(asked: str, out: TextIO) -> None:
    request = json.loads(asked)
    settings = Settings(**request["settings"])
    for name in request["names"]:
        print(json.dumps(probe(name, settings).to_json()), file=out, flush=True)


if __name__ == "__main__":
    # Output of libraries, also from C, goes to stderr; only sections are written to the pipe.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        main(sys.argv[1], answers)
