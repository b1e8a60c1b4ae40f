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
