"""The processor that a benchmark runs on and the vector extensions that it may use: figures are of both.

    python benchmarks/machine.py

A processor with fewer of them is emulated by limits that the libraries know:
ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 python benchmarks/…
"""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

EXTENSIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "asimdbf16", "sve")
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
# Of a benchmark that starts others only the first one tells, because it reads what they print.
TOLD = "HFTL_BENCHMARK_TOLD"


def machine() -> str:
    """One line: processor, cores, vector extensions, and which of them are switched off."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or platform.machine()
    there = (facts.get("flags") or facts.get("Features") or "").split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [name, f"{cores} cores", " ".join(each for each in EXTENSIONS if each in there) or "extensions not known"]
    if limits := [f"{limit}={os.environ[limit]}" for limit in LIMITS if limit in os.environ]:
        parts.append(f"limited by {' '.join(limits)}")
    if "torch" in sys.modules:
        import torch

        gpu = [torch.cuda.get_device_name(0)] if torch.cuda.is_available() else []
        parts += [f"torch uses {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads", *gpu]
    return "; ".join(parts)


def tell_machine() -> None:
    """Print it, once for all processes of a benchmark."""
    if os.environ.setdefault(TOLD, str(os.getpid())) == str(os.getpid()):
        print(machine(), flush=True)


if __name__ == "__main__":
    tell_machine()
