"""Trainings that share a machine compute one after the other, as far as they need the same cores."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers.project import ROOT

pytest.importorskip("fcntl")
CORES = os.cpu_count()
COMPUTE = """
import json, sys, time
from contextlib import ExitStack
from lineup.training import turns

threads, seconds, turns.MOST_SECONDS = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
spans, end = [], time.monotonic() + seconds
with ExitStack() as stack:
    mine = turns.Turns(threads, stack)
    while time.monotonic() < end:
        mine.pass_on()
        if not spans or began != mine.began:
            began = mine.began
            spans.append([time.monotonic(), 0])
            print("turn", flush=True)
        time.sleep(0.01)
        spans[-1][1] = time.monotonic()
print(json.dumps(spans))
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a process which works in turns; all end with the test."""
    processes = []

    def start(threads=CORES, seconds=2.0, most=5.0):
        command = [sys.executable, "-c", COMPUTE, *map(str, (threads, seconds, most))]
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def spans(process):
    """Return when the turns of a process began and ended."""
    output, _ = process.communicate(timeout=30)
    return json.loads(output.splitlines()[-1])


def overlap(some, others):
    """Return the seconds that both computed at once."""
    return sum(max(0, min(a[1], b[1]) - max(a[0], b[0])) for a in some for b in others)


def test_trainings_that_need_all_cores_never_compute_at_once(start):
    found = [spans(process) for process in [start(seconds=3), start(seconds=3), start(seconds=3)]]
    for index, some in enumerate(found):
        assert len(some) > 2
        assert all(overlap(some, others) < 0.05 for others in found[index + 1 :])


@pytest.mark.skipif(CORES < 2, reason="one core")
def test_trainings_that_leave_cores_free_do_not_wait(start):
    first, second = start(threads=1, seconds=3), start(threads=1, seconds=3)
    assert overlap(spans(first), spans(second)) > 1


def test_one_that_is_killed_keeps_nobody_waiting(start):
    killed = start(seconds=60)
    killed.stdout.readline()
    killed.send_signal(signal.SIGKILL)
    began = time.monotonic()
    assert spans(start(seconds=1))[0][0] - began < 4


def test_one_that_is_stopped_in_its_turn_keeps_the_others_waiting_once(start):
    stopped = start(seconds=60)
    stopped.stdout.readline()
    stopped.send_signal(signal.SIGSTOP)
    found = spans(start(seconds=2.5, most=0.5))
    assert sum(end - begin for begin, end in found) > 1.5


def test_without_a_place_for_the_locks_nobody_waits(start, tmp_path):
    (tmp_path / "lineup").write_text("no folder")
    first, second = start(seconds=3), start(seconds=3)
    assert overlap(spans(first), spans(second)) > 1
