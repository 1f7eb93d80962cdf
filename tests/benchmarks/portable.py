"""Whether this machine trains to the same bytes as the one that wrote portable.txt.

python tests/benchmarks/portable.py linear mlp      # some architectures; all of portable.txt without a name
python tests/benchmarks/portable.py --write         # renew portable.txt

MNIST with the recipe of params.yaml, `precision: portable` and two threads. What is compared is the
SHA-256 of model.safetensors and history.csv. The lock file pins torch: another version may give
other bytes.
"""

import platform
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


def main(
    architectures: Annotated[
        list[str] | None, typer.Argument(help="Which; none: those of portable.txt.")
    ] = None,
    write: Annotated[bool, typer.Option(help="Renew portable.txt.")] = False,
) -> None:
    """Train, and compare the bytes with portable.txt; the exit code is 1 where they differ."""
    known = {} if write else read_known()
    found = read_known() if write and architectures else {}
    with tempfile.TemporaryDirectory() as temporary:
        project = make_project(Path(temporary, "project"))
        names = architectures or list(known) or load_params(ROOT / "params.yaml").architectures
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
