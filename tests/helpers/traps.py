"""What a hostile store or download could hold: files that touch a path when they are run."""

import io
import pickle
import zipfile
from pathlib import Path

import torch

MLMODEL = """\
flavors:
  python_function:
    loader_module: trap
    code: code
"""


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def plain_pickle(path: Path) -> bytes:
    """Return a pickle that touches `path`."""
    return pickle.dumps(Bomb(path))


def torch_pickle(path: Path) -> bytes:
    """Return what torch.save makes of weights that touch `path`."""
    buffer = io.BytesIO()
    torch.save({"weight": Bomb(path)}, buffer)
    return buffer.getvalue()


def plant(folder: Path, path: Path) -> None:
    """Put beside a model an MLmodel that names code, and a pt2 archive that holds a pickle."""
    (folder / "MLmodel").write_text(MLMODEL)
    for name in ("code", "data"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "code/trap.py").write_text(f"open({str(path)!r}, 'w').close()\n")
    with zipfile.ZipFile(folder / "data/model.pt2", "w") as archive:
        archive.writestr("model/data/sample_inputs/model.pt", torch_pickle(path))
