"""Times say what else the processors did while they were taken."""

import subprocess
import sys
import time

from helpers.waiting import wait_for

from lineup.other_load import OtherLoad, watch_others


def test_a_program_that_computes_beside_is_seen(monkeypatch):
    busy = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=-1
    )
    try:
        wait_for(busy.stdout.readline)
        with watch_others() as others:
            time.sleep(1)
        monkeypatch.setattr("lineup.other_load._SHORTEST", 60)
        with watch_others() as briefly:
            time.sleep(0.5)
        assert briefly.cores == 0  # the system counts too roughly for that
        assert others.cores > 0.4 and "while other programs used" in str(others)
    finally:
        busy.kill()
    assert str(OtherLoad(0.1)) == ""
