"""`precision: portable` gives the same bits on processors of other makers and generations."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.project import ROOT

EMULATOR = shutil.which("qemu-x86_64")
STEPS = ROOT / "tests/helpers/portable_steps.py"


def run_steps(*emulator):
    """Return the digest of each architecture's state after a few steps."""
    python = Path(sys.executable).resolve()  # the emulator does not look at pyvenv.cfg
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [*emulator, str(python), str(STEPS)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(EMULATOR is None, reason="needs qemu-x86_64, of Debian's qemu-user")
def test_an_emulated_processor_trains_to_the_same_bits():
    here = run_steps()
    assert len(set(here.values())) == 6
    assert run_steps(EMULATOR, "-cpu", "Haswell") == here
