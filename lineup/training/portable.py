"""`precision: portable`: float32 whose bits are the same on every x86-64 processor with AVX2."""

from __future__ import annotations

import os

INSTRUCTIONS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",  # in its other modes MKL looks at the processor's vendor
}


def limit_instructions() -> None:
    """Make torch compute as on a processor with AVX2; call before `import torch`."""
    os.environ.update(INSTRUCTIONS)


def are_instructions_limited() -> bool:
    """Tell whether `limit_instructions` was called."""
    return all(os.environ.get(name) == value for name, value in INSTRUCTIONS.items())
