"""A description of the machine for reports."""

import os
import platform
from pathlib import Path


def processor():
    """Cores, name and relevant vector extensions: `2 cores of AMD EPYC (avx2)`."""
    about = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        about.setdefault(key.strip(), value.strip())
    flags = about.get("flags", about.get("Features", "")).split()
    vectors = [
        flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd") if flag in flags
    ]
    name = about.get("model name", platform.processor())
    return f"{os.cpu_count()} cores of {name} ({', '.join(vectors) or 'no vectors known'})"
