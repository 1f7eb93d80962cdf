"""stages.train of the current folder, saving at least every SECONDS_BETWEEN_SAVES: at each step.

Where STOP_AT_EPOCH is set, it stops itself once, when it saved that epoch.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path.cwd()))

from lineup.cli import run
from lineup.training import checkpoints
from lineup.training.checkpoints import Checkpoint
from stages.train import main

save = Checkpoint.save
stops = [int(epoch) for epoch in os.environ.get("STOP_AT_EPOCH", "").split()]


def save_and_stop(self, state):
    save(self, state)
    if stops and state[0]["epoch"] >= stops[0]:
        stops.clear()
        os.kill(os.getpid(), signal.SIGSTOP)


Checkpoint.save = save_and_stop
checkpoints.SECONDS_BETWEEN_SAVES = float(os.environ.get("SECONDS_BETWEEN_SAVES", "0"))
run(main)
