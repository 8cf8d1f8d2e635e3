"""``python -m benchmarks.gpu --out DIR [SECTION ...]``: measure the GPU path, write ``gpu.json``
and ``gpu.md``, and exit with 1 if a floor was missed.

Sections share ``--minutes``; one that runs out of time or memory says what it left out.
``--device cpu`` goes through all of them at tiny sizes, to see that they work.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # loaded only once it is known that they can be
    from benchmarks.gpu.bench import Bench
    from benchmarks.gpu.report import Report
    from scalesim.device.streams import Device

    Section = Callable[[Bench], None]

NEEDED = ("numpy", "torch", "triton", "xxhash", "safetensors", "tokenizers", "jinja2")


def sections() -> dict[str, tuple[float, Section]]:
    """Name -> (share of the time, what runs), in order."""
    from benchmarks.gpu import adapters, attention, copies, errors, pages, races, turns

    return {
        "pages": (0.07, pages.run),
        "errors": (0.04, errors.run),
        "copies": (0.1, copies.run),
        "decode": (0.14, attention.decode),
        "prefill": (0.05, attention.prefill),
        "adapters": (0.12, adapters.run),
        "turns": (0.3, turns.run),
        "races": (0.12, races.run),
        "flex": (0.06, attention.flex),
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    made.add_argument("sections", nargs="*", metavar="SECTION", help="all of them if none is named")
    made.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="a folder")
    made.add_argument("--device", default="cuda:0")
    made.add_argument("--minutes", type=float, default=8.0, help="for all sections together")
    made.add_argument("--schedules", type=int, default=50, help="of the race hunt")
    made.add_argument("--seed", type=int, default=0)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    began_s = time.perf_counter()
    options = parser().parse_args(arguments)
    missing = [name for name in NEEDED if not importable(name)]
    if missing:
        print(f"benchmarks.gpu needs {', '.join(missing)}: pip install {' '.join(missing)}")
        return 2
    found = sections()
    unknown = [name for name in options.sections if name not in found]
    if unknown:
        print(f"unknown section {unknown[0]!r}; sections are: {', '.join(found)}")
        return 2
    wanted = {name: found[name] for name in options.sections or found}
    report = run(options, wanted, began_s)
    report.write(options.out)
    print(report.markdown())
    for line in report.failed:
        print(f"FLOOR MISSED: {line.what}: {line.value:.3g}, {line.bound}")
    return 1 if report.failed else 0


def importable(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def run(
    options: argparse.Namespace, wanted: Mapping[str, tuple[float, Section]], began_s: float
) -> Report:
    """Run the sections, each until its share of the time is over. A section that fails fails the
    run, and the others still run."""
    import torch

    from benchmarks.gpu.bench import Bench, SkipError
    from benchmarks.gpu.report import Report, environment

    device = device_for(options.device)
    settings = {name: str(value) for name, value in vars(options).items()}
    tiny = options.device == "cpu"
    report = Report(environment(torch, device.place), settings, is_rehearsal=tiny)
    bench = Bench(device.place, tiny, device, report, options.seed, options.schedules)
    total, shares = 60 * options.minutes, sum(share for share, _ in wanted.values())
    for name, (share, section) in wanted.items():
        start = time.perf_counter()
        left_s = began_s + total - start  # what earlier sections did not use goes on
        bench.until_s = start + max(0.0, left_s) * share / shares
        shares -= share
        print(f"[{start - began_s:5.0f} s] {name}", file=sys.stderr, flush=True)
        try:
            section(bench)
        except SkipError as skipped:
            report.left_out.append((name, str(skipped)))
        except Exception as error:
            traceback.print_exc()
            report.error(name, error)
        report.seconds[name] = time.perf_counter() - start
        report.write(options.out)  # what there is, should the rest be cut off
    return report


def device_for(name: str) -> Device:
    import torch

    if name == "cpu":
        from tests.device.hostile_device import HostileDevice

        return HostileDevice(
            order="eager", pinned=lambda count: torch.zeros(count, dtype=torch.uint8)
        )
    from scalesim.device.cuda import CudaDevice

    return CudaDevice.named(name)


if __name__ == "__main__":
    sys.exit(main())
