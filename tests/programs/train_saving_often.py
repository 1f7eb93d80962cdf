"""stages.train of the current folder, saving at least every SECONDS_BETWEEN_SAVES: at each step."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from lineup.cli import run
from lineup.training import checkpoints
from stages.train import main

checkpoints.SECONDS_BETWEEN_SAVES = float(os.environ.get("SECONDS_BETWEEN_SAVES", "0"))
run(main)
