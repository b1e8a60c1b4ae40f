"""Where and with what the figures were measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import torch

from hibprune.records.manifest import Machine

PACKAGES = (
    "hibprune",
    "torch",
    "torchaudio",
    "transformers",
    "accelerate",
    "optimum",
    "optimum-onnx",
    "onnx",
    "onnxruntime-gpu",
    "onnxruntime",
    "datasets",
    "jiwer",
    "numpy",
)


PROCESSOR_FLAGS = {
    "avx2": "avx2",
    "f16c": "f16c",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx_vnni": "avx_vnni",
    "avx512_fp16": "avx512_fp16",
    "amx_int8": "amx_int8",
    "amx_fp16": "amx_fp16",
    "asimd": "neon",
    "asimddp": "neon_dotprod",
    "asimdhp": "neon_fp16",
    "i8mm": "i8mm",
    "sve": "sve",
}
"""What Linux calls the instructions that decide how int8 and fp16 fare, and what others do."""

CPU_INFO = Path("/proc/cpuinfo")


def describe_machine() -> Machine:
    """Processor, cores this process may use, memory, GPU and operating system."""
    has_gpu = torch.cuda.is_available()
    return Machine(
        processor=_processor(),
        cores=available_cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpu=torch.cuda.get_device_name() if has_gpu else None,
        gpu_driver=gpu_driver() if has_gpu else None,
        system=platform.platform(),
        instruction_set=instruction_set(),
    )


def gpu_driver() -> str | None:
    """Version of NVIDIA's driver, `570.86.15`; None where its own tool does not tell."""
    question = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    try:
        told = subprocess.run(question, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    # A line for every GPU.
    found = re.match(r"\d[\d.]*$", told.stdout, re.MULTILINE)
    return None if found is None else found[0]


def instruction_set() -> tuple[str, ...]:
    """What the processor has for int8 and fp16: `avx2`, `avx512_vnni`; empty if unknown.

    On an x86 processor without VNNI, int8 saturates unless weights keep to 7 bits.
    """
    if sys.platform == "darwin" and platform.machine() == "arm64":
        # Every processor that Apple sells with it.
        return ("neon", "neon_dotprod", "neon_fp16")
    flags = set(_cpu_info("flags", "Features").split())
    return tuple(name for flag, name in PROCESSOR_FLAGS.items() if flag in flags)


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result."""
    return {"python": platform.python_version(), **_package_versions()}


@cache
def _package_versions() -> Mapping[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def available_cores() -> int:
    """Processor cores this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(*keys: str) -> str:
    """The first line of Linux's description of the processor with one of these keys; else empty."""
    try:
        lines = CPU_INFO.read_text().splitlines()
    except OSError:
        return ""
    fields = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in fields if key.strip() in keys), "")
