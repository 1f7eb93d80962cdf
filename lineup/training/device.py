"""Where and how precisely a training computes, and that it does so reproducibly."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields

import torch

from lineup.errors import UserError, lacks_memory
from lineup.params import Train
from lineup.training.portable import are_instructions_limited

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_THREADS = torch.get_num_threads()  # before any recipe sets its own


@dataclass(frozen=True)
class Machine:
    """What a machine makes of a recipe: those that are equal compute the same bits."""

    device: str
    precision: str
    threads: int
    torch: str
    processor: str
    hardware: str = field(compare=False)  # in words
    node: str = field(default="", compare=False)  # of a cluster

    def differences(self, other: Machine) -> list[str]:
        """Say in what this one computes otherwise."""
        mine, theirs = asdict(self), asdict(other)
        names = [
            one.name for one in fields(self) if one.compare and mine[one.name] != theirs[one.name]
        ]
        return [f"{mine[name]} instead of {theirs[name]}" for name in names]


def prepare_machine(recipe: Train) -> Machine:
    """Make this process compute as `recipe` says, reproducibly; UserError where it can't."""
    make_deterministic()
    keep_memory()
    is_portable = recipe.precision == "portable"
    if is_portable:
        check_portable()
    device = torch.device("cpu") if is_portable else resolve_device(recipe.device)
    if recipe.threads != "auto":
        torch.set_num_threads(recipe.threads)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    processor = _processor()
    words = f"{processor}, {os.cpu_count()} cores"
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
        words = f"{words}, {processor}"
    return Machine(
        device=str(device),
        precision=resolve_precision(recipe.precision, device),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        processor="any with AVX2" if is_portable else processor,
        hardware=words,
    )


def _processor() -> str:
    """Return the processor's name, and the instructions that torch uses of it."""
    known = torch.cpu.get_capabilities().get("cpu_name")
    name = known or platform.processor() or platform.machine()
    return f"{name} with {torch.backends.cpu.get_cpu_capability()}"


def reset_threads() -> None:
    """Give torch as many threads as it began with; call before a process's next training."""
    torch.set_num_threads(_THREADS)


def resolve_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `mps` or `cuda[:N]`; UserError if it is not there."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    kind, _, index = name.partition(":")  # torch knows no index above 127
    if kind == "cpu":
        return torch.device(kind)
    is_here = accelerator is not None and accelerator.type == kind
    count = torch.accelerator.device_count() if is_here else 0
    if int((index or "0")[:9]) >= count:
        raise UserError(
            f"params.yaml: train.device = '{name}', but this machine has {count} of them; try auto"
        )
    return torch.device(name)


def check_portable() -> None:
    """Raise UserError where `precision: portable` can't hold."""
    if not are_instructions_limited():
        raise UserError(
            "precision: portable is for dvc repro, and for the scripts train, seeds and search"
        )
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        raise UserError(
            "params.yaml: precision = 'portable' needs an x86-64 processor with AVX2, which "
            f"{platform.processor() or platform.machine()} is not; try float32"
        )


def resolve_precision(name: str, device: torch.device) -> str:
    """Return `float32` or `bfloat16`; `auto` takes bfloat16 where the hardware computes in it."""
    if name != "auto":
        return name
    return "bfloat16" if _has_bfloat16(device) else "float32"


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
    return False


def make_deterministic() -> None:
    """Choose algorithms that give the same bits on every run; call before the first use of CUDA."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # as torch.use_deterministic_algorithms, which imports a compiler
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs time
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, in convolutions and RNNs too


def keep_memory() -> None:
    """Let glibc keep what a step frees: new pages may take longer than the step itself."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        if not libc.mallopt(_M_MMAP_THRESHOLD, 2**30):
            libc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # older ones take no more
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)


@contextmanager
def explain_memory() -> Iterator[None]:
    """Turn a lack of memory, of the device or of the machine, into a UserError with a way out."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not lacks_memory(error):
            raise
        text = str(error).strip() or type(error).__name__
        detail = text.splitlines()[0].partition(" GPU ")[0]
        hint = "try a smaller batch_size, a smaller network, or smaller images"
        if "CUDA" in text:  # a GPU's memory holds all images of the training, too
            hint += ", or train.device=cpu"
        raise UserError(f"the memory is too small for this training; {hint} ({detail})") from None
