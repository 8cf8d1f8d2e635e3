"""``python -m scalesim_kernels``: judges kernels (``check``), compiles them for GPUs (``compile``).

check [TARGET] [--op OP]     conformance of a kernel set, or of one function of a user's
compile [--targets ...]      the compile gate
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence


def main(args: Sequence[str] | None = None) -> int:
    """0 if all is well, 1 if a kernel failed, 2 for a command that makes no sense."""
    options = parser().parse_args(args)
    if options.command == "compile":
        from .compile_command import compile_command

        return compile_command(options)
    if options.device == "cpu":  # Triton reads this when it is first imported
        os.environ.setdefault("TRITON_INTERPRET", "1")
    from .check_command import check_command

    try:
        return check_command(options)
    except (ValueError, TypeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m scalesim_kernels", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = top.add_subparsers(dest="command", required=True)

    check = commands.add_parser("check", help="conformance against the specification")
    check.add_argument(
        "target", nargs="?", default="triton",
        help="a set (triton, cuda, cpu, reference) or module:function: with --op an implementation "
        "of it, without it a maker of a KernelSet",
    )  # fmt: skip
    check.add_argument("--op", action="append", default=[], help="which op; may be given again")
    check.add_argument("--device", default="cpu", help="cpu (Triton's interpreter) or cuda")
    check.add_argument("--dtypes", default="", help="fp32,fp16 on a CPU; fp16,bf16 on a GPU")
    check.add_argument(
        "--fp8", action="store_true", help="also with KV in fp8, as our own sets are judged"
    )
    check.add_argument("--long", action="store_true", help="every combination of the factors")
    check.add_argument("--cases", type=int, help="only the first so many of each op: a quick look")
    check.add_argument(
        "--jobs", type=int, default=1, help="how many processes; 0: one for each core"
    )
    check.add_argument("--time", action="store_true", help="also the quickest of five calls")

    build = commands.add_parser("compile", help="the compile gate")
    build.add_argument("--targets", default="sm_80,sm_90,gfx942")
    build.add_argument("--update", action="store_true", help="write the table instead")
    build.add_argument("--all", action="store_true", help="print every kernel's figures")
    build.add_argument(
        "--jobs", type=int, default=1, help="how many processes, at most one a target; 0: as cores"
    )
    return top


if __name__ == "__main__":
    sys.exit(main())
