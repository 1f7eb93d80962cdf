"""A run's folder: append-only files that survive a kill at any instant."""

from lineup.tracking.run_log import RunLog, run_logs

LOSS = {"loss": 0.5}


def test_a_line_torn_by_a_kill_is_ignored_by_readers_and_cut_off_by_the_next_writer(here):
    RunLog("a").add_point(1, LOSS, at=10)
    points = RunLog("a").points_file
    with points.open("ab") as file:
        file.write(b'{"time": 20, "step": 2, "val')
    known = [{"time": 10, "step": 1, "values": LOSS}]
    assert RunLog("a").read_points() == (known, len(points.read_bytes().split(b"\n")[0]) + 1)
    RunLog("a").add_point(2, LOSS, at=30)
    assert RunLog("a").read_points()[0] == [*known, {"time": 30, "step": 2, "values": LOSS}]


def test_a_resumed_training_may_repeat_its_points(here):
    RunLog("a").add_point(1, LOSS, at=10)
    log = RunLog("a")
    for step in (1, 1, 2, 2):
        log.add_point(step, LOSS, at=20)
    log.add_point(2, {"accuracy": 1.0}, at=20)  # another point of the same step
    found = [(point["step"], point["time"], *point["values"]) for point in log.read_points()[0]]
    assert found == [(1, 10, "loss"), (2, 20, "loss"), (2, 20, "accuracy")]


def test_what_is_measured_anew_is_added_where_it_is_another_value(here):
    log = RunLog("a")
    for loss in (0.5, 0.5, 0.25, 0.25):
        log.renew_point(3, {"test_loss": loss})
    assert [point["values"]["test_loss"] for point in log.read_points()[0]] == [0.5, 0.25]


def test_points_are_read_from_where_the_last_reader_stopped(here):
    log = RunLog("a")
    assert log.read_points() == ([], 0)
    log.add_point(1, LOSS)
    _, end = log.read_points()
    log.add_point(2, LOSS)
    points, end = log.read_points(end)
    assert [point["step"] for point in points] == [2]
    assert log.read_points(end) == ([], end)


def test_the_last_status_counts_and_a_run_without_one_is_running(here):
    log = RunLog("a")
    log.begin({"experiment": "e", "name": "n"})
    assert log.status["status"] == "RUNNING"
    log.set_status("RUNNING")
    log.set_status("FAILED", "it\nwent wrong: ä")
    with log.status_file.open("a") as file:
        file.write('{"time": 1, "stat')  # a kill
    assert (log.status["status"], log.status["error"]) == ("FAILED", "it\nwent wrong: ä")


def test_a_run_begins_once(here):
    log = RunLog("a")
    assert not log.is_started and run_logs() == []
    log.begin({"experiment": "e", "name": "first", "time": 1})
    log.begin({"experiment": "e", "name": "second", "time": 2})
    assert log.start["name"] == "first"


def test_runs_are_listed_from_the_oldest(here):
    for run_id, order in (("b", 3), ("c", 1), ("a", 2)):
        RunLog(run_id).begin({"time": 9 - order, "order": order})  # the clock was set back
    RunLog("unborn").add_point(1, LOSS)
    assert [log.run_id for log in run_logs()] == ["c", "a", "b"]


def test_artifacts_replace_older_ones_whole(here, tmp_path):
    log, folder = RunLog("a"), tmp_path / "plots"
    folder.mkdir()
    (folder / "old.png").write_text("1")
    log.add_artifact(folder)
    (folder / "old.png").rename(folder / "new.png")
    log.add_artifact(folder)
    log.add_artifact(folder / "new.png", "some/where")
    found = [path.relative_to(log.artifacts) for path in log.artifacts.rglob("*.png")]
    assert sorted(map(str, found)) == ["plots/new.png", "some/where/new.png"]
