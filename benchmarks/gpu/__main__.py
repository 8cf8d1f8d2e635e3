"""``python -m benchmarks.gpu --out DIR [SECTION ...]``: measure the GPU path, write ``gpu.json``
and ``gpu.md``, and exit with 1 if a floor was missed. Nothing needs to be installed but what
``NEEDED`` names.

Each section runs in a process of its own, since an error of a kernel leaves a process without a
GPU, and writes its rows as they come: whatever is cut off, what was measured is kept. Sections
share ``--minutes`` and stand in the order of their worth; one that runs out of time or memory says
what it left out. ``--device cpu`` goes through all of them at tiny sizes, to see that they work;
the section ``roofline`` says on any machine what arithmetic expects of the kernels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[2]
for folder in ("kernels", "src"):  # of this checkout, also where another is installed
    if str(ROOT / folder) not in sys.path:
        sys.path.insert(0, str(ROOT / folder))

if TYPE_CHECKING:  # loaded only once it is known that they can be
    from benchmarks.gpu.bench import Bench
    from benchmarks.gpu.report import Report
    from scalesim.device.streams import Device

    Section = Callable[[Bench], None]

NEEDED = ("numpy", "torch", "triton", "xxhash", "safetensors", "tokenizers", "jinja2")


GRACE_S = 20.0  # that a section may run over before it is ended
POLL_S = 1.0


def sections() -> dict[str, tuple[float, Section]]:
    """Name -> (share of the time, what runs), by worth."""
    from benchmarks.gpu import (
        adapters,
        attention,
        bits,
        copies,
        errors,
        forms,
        kinds,
        micro,
        models,
        pages,
        races,
        roofline,
        turns,
    )  # fmt: skip

    return {
        "roofline": (0.0, roofline.run),
        "errors": (0.1, errors.run),
        "bits": (0.06, bits.run),
        "decode": (0.11, attention.decode),
        "micro": (0.08, micro.run),
        "turns-8b": (0.18, turns.large),
        "forms": (0.03, forms.run),
        "prefill": (0.04, attention.prefill),
        "pages": (0.06, pages.run),
        "copies": (0.08, copies.run),
        "adapters": (0.08, adapters.run),
        "kinds": (0.05, kinds.run),
        "models": (0.03, models.run),
        "races": (0.08, races.run),
        "turns-1b": (0.08, turns.small),
        "kit": (0.0, errors.kit),
        "flex": (0.0, attention.flex),
    }


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("sections", nargs="*", metavar="SECTION", help="all of them if none is named")
    made.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="a folder")
    made.add_argument("--device", default="cuda:0")
    made.add_argument("--minutes", type=float, default=6.0, help="for all sections together")
    made.add_argument("--schedules", type=int, default=20, help="of the race hunt")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--one-process", action="store_true", help="run the sections in this process")
    made.add_argument("--part", action="store_true", help=argparse.SUPPRESS)  # of another's run
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    began_s = time.monotonic()
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
    if options.part:
        run_part(options)
        return 0
    report = run(options, options.sections or list(found), began_s)
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


def part_file(options: argparse.Namespace, name: str) -> Path:
    return Path(options.out) / f"gpu-{name}.json"


def run(options: argparse.Namespace, wanted: Sequence[str], began_s: float) -> Report:
    """Run the sections, each until its share of the time is over. One that fails fails the run, and
    the others still run. ``gpu.json`` and ``gpu.md`` hold what there is at any time."""
    from benchmarks.gpu.report import Report

    settings = {name: str(value) for name, value in vars(options).items()}
    report = Report({}, settings, is_rehearsal=options.device == "cpu")
    options.out.mkdir(parents=True, exist_ok=True)
    parts = [part_file(options, name) for name in wanted]
    for part in parts:
        part.unlink(missing_ok=True)
    total_s, shares = 60 * options.minutes, sum(sections()[name][0] for name in wanted)
    waiting = None if options.one_process else Part(options, wanted[0])
    for number, name in enumerate(wanted):
        left_s = max(0.0, began_s + total_s - time.monotonic())
        share = sections()[name][0]
        # What earlier sections did not use goes on; a section without a share takes what is left.
        share_s = left_s * share / shares if share and shares > 0 else left_s
        shares -= share
        print(f"[{time.monotonic() - began_s:5.0f} s] {name}", file=sys.stderr, flush=True)
        if waiting is None:
            run_section(options, name, share_s)
            continue
        part, more = waiting, number + 1 < len(wanted)
        part.go(share_s)
        waiting = Part(options, wanted[number + 1]) if more else part  # it imports meanwhile
        end_s = time.monotonic() + (share_s + GRACE_S if options.device != "cpu" else 1e6)
        while part.process.poll() is None and time.monotonic() < end_s:
            try:
                part.process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                report.joined(parts).write(options.out)
        if part.process.poll() is None:
            part.process.kill()
            part.process.wait()
            report.leave_out(name, f"ended after {share_s + GRACE_S:.0f} s")
        elif part.process.returncode:
            report.error(name, f"its process ended with {part.process.returncode}")
        report.joined(parts).write(options.out)
    return report.joined(parts)


class Part:
    """A process that runs one section once it is told how long the section may take."""

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        self.name = name
        command = [
            sys.executable, "-m", "benchmarks.gpu", name, "--part", "--out", str(options.out),
            "--device", options.device, "--schedules", str(options.schedules),
            "--seed", str(options.seed),
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=ROOT, text=True)

    def go(self, share_s: float) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(share_s) + "\n")
            self.process.stdin.close()
        except BrokenPipeError:
            pass  # it ended already; its return code says so


def run_part(options: argparse.Namespace) -> None:
    """Import what all sections need, wait for the word, and run the one section."""
    import torch  # noqa: F401

    word = sys.stdin.readline()
    if word:
        run_section(options, options.sections[0], json.loads(word))


def run_section(options: argparse.Namespace, name: str, share_s: float) -> None:
    """Run a section on the device, and keep its report in its own file."""
    import torch

    from benchmarks.gpu.bench import Bench, SkipError
    from benchmarks.gpu.report import Report, environment

    start, tiny = time.perf_counter(), options.device == "cpu"
    report = Report({}, {}, is_rehearsal=tiny, file=part_file(options, name))
    try:
        device = device_for(options.device if name != "roofline" else "cpu")
        report.environment = environment(torch, device.place)
        bench = Bench(device.place, tiny, device, report, options.seed, options.schedules)
        bench.until_s, bench.share_s = start + share_s, share_s
        sections()[name][1](bench)
    except SkipError as skipped:
        report.leave_out(name, skipped)
    except Exception as error:
        traceback.print_exc()
        report.error(name, f"{type(error).__name__}: {error}")
    report.seconds[name] = time.perf_counter() - start
    report.save()


def device_for(name: str) -> Device:
    import torch

    if name == "cpu":
        from tests.device.hostile_device import HostileDevice

        return HostileDevice(
            order="eager",
            pinned=lambda count: torch.zeros(count, dtype=torch.uint8),
            empty=lambda shape, dtype: torch.empty(shape, dtype=dtype),
        )
    from scalesim.device.cuda import CudaDevice

    return CudaDevice.named(name)


if __name__ == "__main__":
    sys.exit(main())
