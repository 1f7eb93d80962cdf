"""The end of a training waits for the process beside it as long as that gets on."""

import subprocess
import sys
import time

import pytest

from lineup.tracking import follower
from lineup.tracking.follower import Follower


class Computing(Follower):
    """One that computes for some seconds and then ends."""

    def __init__(self, seconds):
        self.logs = []
        program = f"import time\nwhile time.process_time() < {seconds}: pass"
        self.process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)


@pytest.mark.parametrize(("seconds", "most", "is_whole"), [(2, 60, True), (600, 2, False)])
def test_one_that_computes_is_waited_for_but_not_for_ever(
    seconds, most, is_whole, monkeypatch, capsys
):
    monkeypatch.setattr(follower, "END_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(follower, "CPU_SECONDS", 0.1)
    monkeypatch.setattr(follower, "MOST_SECONDS", float(most))
    start = time.monotonic()
    Computing(seconds).close()
    assert time.monotonic() - start > 1.5
    assert ("make sync" in capsys.readouterr().out) == (not is_whole)
