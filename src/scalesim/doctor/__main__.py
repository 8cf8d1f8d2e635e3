"""The child of ``children``: runs probes in order and prints a line of JSON for each.

A probe that raises gives a section that says so. Each is imported only when its turn comes.
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
    # What libraries print goes to stderr, from C too; the sections have the pipe to themselves.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        main(sys.argv[1], answers)
