"""The device that an engine would use, and the GPUs that torch finds."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from scalesim.doctor.findings import Section, Settings, reason_of
from scalesim.engine.build import resolve_device
from scalesim.errors import ScaleSimError

PROVED_CAPABILITY = (8, 0)  # the oldest target of the compile gate
DRIVERS = (Path("/proc/driver/nvidia/version"), Path("/dev/kfd"))  # NVIDIA's, AMD's


def probe(settings: Settings) -> Section:
    section = Section("device", {"asked": settings.device})
    try:
        place = resolve_device(settings.device)
    except ScaleSimError as error:
        section.facts["taken"] = None
        section.find("error", str(error), "--device auto or --device cpu")
    else:
        section.facts["taken"] = place
        judge(section, place, any(path.exists() for path in DRIVERS))
    section.facts["torch_built_for"] = built_for()
    section.facts["threads"] = torch.get_num_threads()
    section.facts["omp_num_threads"] = os.environ.get("OMP_NUM_THREADS")
    section.facts["cuda_visible_devices"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    for index in range(torch.cuda.device_count()):
        describe(section, index)
    return section


def built_for() -> str:
    if torch.version.cuda:
        return f"CUDA {torch.version.cuda}"
    hip = getattr(torch.version, "hip", None)
    return f"ROCm {hip}" if hip else "CPU"


def judge(section: Section, place: str, has_driver: bool) -> None:
    """Findings about an engine at ``place``."""
    if place != "cpu":
        section.find(
            "warning",
            f"an engine with device={section.facts['asked']!r} runs on {place}. The GPU path is "
            "checked in Triton's interpreter, by compilation and on a model of streams, but has "
            "not been run on a GPU yet",
            "device='cpu' goes back to the path that is proved; `python -m benchmarks.gpu --out "
            "DIR` judges this GPU",
        )
    elif section.facts["asked"] == "auto" and has_driver:
        section.find(
            "warning",
            f"a GPU's driver is loaded, but torch (built for {built_for()}) sees no GPU: engines "
            "run on the CPU",
            "install torch's build for this GPU, or look at CUDA_VISIBLE_DEVICES",
        )


def describe(section: Section, index: int) -> None:
    """Facts of one GPU; an error if it cannot be queried."""
    name = f"gpu_{index}"
    try:
        properties = torch.cuda.get_device_properties(index)
        capability = torch.cuda.get_device_capability(index)
        free, total = torch.cuda.mem_get_info(index)
    except Exception as error:  # drivers raise what they like
        section.find(
            "error",
            f"{name} does not answer: {reason_of(error)}",
            "CUDA_VISIBLE_DEVICES leaves it out; device='cpu' does without",
        )
        return
    section.facts |= {
        name: properties.name,
        f"{name}_capability": f"{capability[0]}.{capability[1]}",
        f"{name}_free_bytes": int(free),
        f"{name}_total_bytes": int(total),
    }
    if capability < PROVED_CAPABILITY:
        section.find(
            "warning",
            f"{name} has compute capability {capability[0]}.{capability[1]}; the kernels are "
            "compiled and examined from 8.0 on",
            "device='cpu', or another GPU",
        )
