"""What is told of the processor that figures were measured on."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from hibprune.execution import machine

PROCESSORS = {
    "without VNNI": (
        "model name\t: AMD EPYC\nflags\t\t: fpu sse4_2 avx f16c fma avx2 bmi2\n",
        ("avx2", "f16c"),
    ),
    "server": (
        "processor\t: 0\nmodel name\t: Xeon\n"
        "flags\t\t: avx f16c avx2 avx512f avx512_vnni avx_vnni avx512_fp16 amx_bf16 amx_int8\n"
        "vmx flags\t: tsc_offset\n",
        ("avx2", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_fp16", "amx_int8"),
    ),
    "ARM": (
        "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp sve i8mm\n",
        ("neon", "neon_dotprod", "neon_fp16", "i8mm", "sve"),
    ),
    "old ARM": ("Features\t: fp asimd evtstrm crc32\n", ("neon",)),
    "unknown": ("processor\t: 0\nmodel name\t: avx2\n\n", ()),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_instruction_set(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described, wanted = PROCESSORS[kind]
    (tmp_path / "cpuinfo").write_text(described)
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(sys, "platform", "linux")
    assert machine.instruction_set() == wanted
    assert machine.describe_machine().instruction_set == wanted


def test_where_there_is_no_description(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "missing")
    assert machine.instruction_set() == ()
    assert machine.describe_machine().processor == (platform.processor() or platform.machine())
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    assert "neon_dotprod" in machine.instruction_set()


@pytest.mark.parametrize(
    ("told", "driver"),
    [
        ("echo 570.86.15; echo 570.86.15", "570.86.15"),
        ("echo Failed to initialize NVML", None),
        ("echo 570.86.15; exit 9", None),
    ],
)
def test_the_drivers_version_is_what_its_tool_tells(
    told: str, driver: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{told}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpu_driver() == driver


def test_without_the_drivers_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpu_driver() is None
    monkeypatch.setattr(machine.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(machine.torch.cuda, "get_device_name", lambda: "H100")
    assert machine.describe_machine().gpu == "H100"
    monkeypatch.setattr(machine, "gpu_driver", lambda: "570.86.15")
    assert machine.describe_machine().gpu_driver == "570.86.15"
