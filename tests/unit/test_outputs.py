"""What a training leaves while it runs."""

from types import SimpleNamespace

import pytest

from lineup.files import write_rows
from lineup.paths import HISTORY, RUN_JSON
from lineup.training.outputs import LiveHistory, write_outputs
from lineup.training.trainer import Epoch, Step

ROWS = [{"epoch": number, "val_loss": 1 / (3 * number)} for number in (1, 2, 3)]


def test_the_history_grows_by_an_epoch_to_the_bytes_that_the_end_writes(tmp_path):
    live = LiveHistory(tmp_path / "live", known=[])
    live.record(Step(16))
    assert not (tmp_path / "live").exists()
    for count, row in enumerate(ROWS, start=1):
        live.record(Epoch(row, weights=None))
        write_rows(tmp_path / HISTORY, ROWS[:count])
        assert live.path.read_bytes() == (tmp_path / HISTORY).read_bytes()


def test_a_resumed_history_begins_with_what_is_known_and_never_writes_through_a_link(tmp_path):
    cached, place = tmp_path / "cached", tmp_path / HISTORY
    cached.write_text("of another training\n")
    place.hardlink_to(cached)
    (tmp_path / RUN_JSON).write_text("{}")
    live = LiveHistory(tmp_path, known=ROWS[:2])
    live.record(Epoch(ROWS[2], weights=None))
    write_rows(tmp_path / "whole.csv", ROWS)
    assert place.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert cached.read_text() == "of another training\n"
    assert not (tmp_path / RUN_JSON).exists()  # until all is of one training


def test_outputs_that_are_not_whole_have_no_run(tmp_path):
    (tmp_path / RUN_JSON).write_text('{"run_id": "another"}')
    trainer = SimpleNamespace(best={}, progress=SimpleNamespace(history=ROWS))
    with pytest.raises(KeyError):  # after the weights and the history
        write_outputs(tmp_path, SimpleNamespace(trainer=trainer, config={}, architecture="a"), "id")
    assert (tmp_path / HISTORY).exists() and not (tmp_path / RUN_JSON).exists()
