"""Whether this machine trains to the same bytes as the one that wrote portable.txt.

python tests/benchmarks/portable.py linear mlp      # some architectures; all of portable.txt without a name
python tests/benchmarks/portable.py --write         # renew portable.txt
python tests/benchmarks/portable.py --cost 3        # portable's loop ÷ float32's, alternating, three rounds

MNIST with the recipe of params.yaml, `precision: portable` and two threads. What is compared is the
SHA-256 of model.safetensors and history.csv. The lock file pins torch: another version may give
other bytes.
"""

import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from helpers.project import Project, copy_downloads, copy_sources  # noqa: E402

from lineup.files import sha256  # noqa: E402
from lineup.params import load_params  # noqa: E402

KNOWN = Path(__file__).with_name("portable.txt")
FILES = ("model.safetensors", "history.csv")


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line for line in lines if line.startswith("model name")).partition(": ")[2]


def make_project(folder: Path) -> Project:
    """Return a copy of this repository with MNIST fetched and split."""
    project = Project(folder)
    copy_sources(folder)
    project.environment |= {"LINEUP_TRACKING": "off"}
    copy_downloads(folder)
    project.set(train__precision="portable", train__threads=2)
    for stage in ("fetch", "split"):
        project.run("python", "-m", f"stages.{stage}")
    return project


def read_known() -> dict[str, list[str]]:
    """Return the digests of portable.txt by architecture."""
    lines = [line for line in KNOWN.read_text().splitlines() if not line.startswith("#")]
    return {name: digests for name, *digests in map(str.split, lines)}


WAYS = {  # what the portable loop is held against: precision, environment
    "float32": ("float32", {}),
    "float32 with AVX2": ("float32", {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
    "portable": ("portable", {}),
}
SHORT = {"linear": 6, "mlp": 6}  # epochs; of the others one


def measure_cost(project: Project, names: list[str], rounds: int) -> None:
    """Print how long the loop takes with `portable`, divided by the same without."""
    for name in names:
        seconds = {way: [] for way in WAYS}
        for number in range(rounds):
            for seed, (way, (precision, environment)) in enumerate(WAYS.items(), 10 * number):
                epochs = {
                    f"models__{name}__epochs": SHORT.get(name, 1)
                }  # a seed twice would resume
                project.set(train__precision=precision, train__threads=2, seed=seed, **epochs)
                printed = project.run("python", "-m", "stages.train", name, **environment).stdout
                seconds[way].append(float(re.search(r"in (\d+\.\d) s", printed)[1]))
        median = {way: statistics.median(found) for way, found in seconds.items()}
        ratios = [f"{median['portable'] / median[way]:.2f} × {way}" for way in list(WAYS)[:2]]
        print(f"{name:10} {', '.join(ratios)}", flush=True)


def main(
    architectures: Annotated[
        list[str] | None, typer.Argument(help="Which; none: those of portable.txt.")
    ] = None,
    write: Annotated[bool, typer.Option(help="Renew portable.txt.")] = False,
    cost: Annotated[int, typer.Option(help="Measure what portable costs, in so many rounds.")] = 0,
) -> None:
    """Train, and compare the bytes with portable.txt; the exit code is 1 where they differ."""
    changed = ["git", "diff", "--quiet", "HEAD", "--", "params.yaml"]
    if not cost and subprocess.run(changed, cwd=ROOT, check=False).returncode == 1:
        hint = "try: git stash, make verify, git stash pop"
        raise SystemExit(
            f"params.yaml is changed, and {KNOWN.name} is of the one that ships; {hint}"
        )
    known = {} if write else read_known()
    found = read_known() if write and architectures else {}
    with tempfile.TemporaryDirectory() as temporary:
        project = make_project(Path(temporary, "project"))
        names = architectures or list(known) or load_params(ROOT / "params.yaml").architectures
        if cost:
            measure_cost(project, names, cost)
            return
        for name in names:
            start = time.perf_counter()
            project.run("python", "-m", "stages.train", name)
            folder = project.folder / "models" / name
            found[name] = [sha256(folder / file) for file in FILES]
            same = "  same" if found[name] == known.get(name) else "  DIFFERENT"
            if name not in known:
                same = "" if write else f"  not in {KNOWN.name}"
            print(f"{name:10} {time.perf_counter() - start:4.0f} s{same}", flush=True)
    if write:
        head = f"# {processor()}; SHA-256 of {' and '.join(FILES)}\n"
        KNOWN.write_text(head + "".join(f"{n} {' '.join(d)}\n" for n, d in found.items()))
    elif any(found[name] != known[name] for name in names if name in known):
        print(f"these bytes are not those of {KNOWN.name}, on {platform.processor()}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
