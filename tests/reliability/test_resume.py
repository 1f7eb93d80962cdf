"""Deterministic and unkillable: whatever stops a training, the next one ends with the bytes of an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
import torch
from helpers.project import QUICK, Project, copy_sources
from test_training import Recorder, pictures, recipe

from lineup import architectures
from lineup.data.dataset import Dataset
from lineup.files import read_json, sha256, write_json, write_tensors
from lineup.params import load_params
from lineup.training.checkpoints import Checkpoint, code_digests, fingerprint
from lineup.training.trainer import Interrupted, Training

OUTPUTS = ["model.safetensors", "history.csv", "model.json"]
SMALL = {
    "linear": {},
    "mlp": {"hidden": [8], "dropout": 0.2},
    "cnn": {"channels": [3, 4]},
    "rnn": {"hidden": 6, "layers": 2},
    "simplenet": {"channels": [[3], [4]]},
    "alexnet": {"channels": [3, 4, 4, 4, 3], "hidden": 8},
}
PATIENCE = 300  # seconds, on a busy machine


# --- in one process ---------------------------------------------------------------------------------------------------


def make(name, **changes):
    images = pictures(40)
    images.inputs = images.inputs.repeat(1, 2, 2, 2)[:, :, :9, :9]
    torch.manual_seed(1)
    model = architectures.build(name, [2, 9, 9], 4, SMALL[name])
    augment = {"rotate": 10, "flip": True, "erase": 0.5}
    settings = {
        "optimizer": "adamw",
        "schedule": "one_cycle",
        "weight_decay": 0.1,
        "learning_rate": 0.01,
    }
    return Training(
        model,
        images,
        images,
        recipe(**settings | {"augment": augment, "ema": 0.9} | changes),
        seed=5,
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": "sgd", "momentum": 0.9, "ema": 0}, {"optimizer": "muon", "momentum": 0.9}],
    ids=["adamw", "sgd", "muon"],
)
@pytest.mark.parametrize("name", SMALL)
def test_a_training_resumed_from_any_step_ends_with_the_same_bits(
    name, settings, tmp_path, monkeypatch
):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    torch.use_deterministic_algorithms(True)
    checkpoint, saved = Checkpoint("f" * 32), []

    def save(loop):  # through the disk, where a tensor's memory layout is lost
        checkpoint.save(*loop.state())
        saved.append(Checkpoint("f" * 32).load())

    with checkpoint.lock():
        checkpoint.load()
        whole = make(name, **settings)
        whole.run(Recorder().reporter(), save, due=lambda: True)
    assert (
        len(saved) == 2 * 3 + 1
    )  # after each step, where it is the epoch's last after validation; and at the end
    for progress, tensors in saved:
        resumed = make(name, **settings)
        resumed.restore(json.loads(json.dumps(progress)), tensors)
        resumed.run(Recorder().reporter(), lambda _: None, lambda: False)
        assert resumed.progress == whole.progress
        tensors, expected = resumed.state()[1], whole.state()[1]
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    torch.use_deterministic_algorithms(False)


def test_a_training_asked_to_stop_saves_after_the_step_and_repeats_no_report():
    whole, loop, saved = Recorder(), make("linear", log_every=1), []
    make("linear", log_every=1).run(whole.reporter(), lambda _: None, lambda: False)
    record = Recorder()
    for _ in range(20):
        record.stopped = True
        try:
            loop.run(record.reporter(), lambda each: saved.append(each.state()), lambda: False)
            break
        except Interrupted:
            loop = make("linear", log_every=1)
            loop.restore(*saved[-1])
    assert record.steps == whole.steps and record.epochs == whole.epochs and loop.progress.finished


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Return a checkpoint with one save, as the next process finds it."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    checkpoint = Checkpoint("a" * 32)
    with checkpoint.lock():
        assert checkpoint.load() is None and not checkpoint.warning
        checkpoint.save({"epoch": 3}, {"weight": torch.arange(100.0)})
    return checkpoint


def flip(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def tensor_file(checkpoint):
    return checkpoint.folder / read_json(checkpoint.folder / "progress.json")["file"]


def test_what_was_saved_is_what_is_loaded_and_the_training_keeps_its_id(saved):
    later = Checkpoint("a" * 32)
    state, tensors = later.load()
    assert state == {"epoch": 3} and torch.equal(tensors["weight"], torch.arange(100.0))
    assert later.training == saved.training and len(later.training) == 32 and not later.warning


@pytest.mark.parametrize(
    "damage",
    [
        lambda c: flip(tensor_file(c)),
        lambda c: tensor_file(c).unlink(),
        lambda c: tensor_file(c).write_bytes(b""),
        lambda c: (c.folder / "progress.json").write_text("{"),
        lambda c: (c.folder / "progress.json").write_text("[]"),
        lambda c: (c.folder / "progress.json").write_text("{}"),
        lambda c: (c.folder / "progress.json").write_bytes(b"\xff\x00"),
    ],
    ids=["a bit", "no tensors", "empty tensors", "half JSON", "a list", "nothing in it", "no text"],
)
def test_a_damaged_checkpoint_is_reported_and_ignored(saved, damage):
    damage(saved)
    later = Checkpoint("a" * 32)
    assert later.load() is None
    assert str(later.folder) in later.warning and "training starts again" in later.warning
    assert len(later.training) == 32 and not list(later.folder.glob("state-*"))


def test_a_kill_while_saving_leaves_the_save_before(saved, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lineup.training.checkpoints.write_json", die)
    with pytest.raises(KeyboardInterrupt):
        saved.save({"epoch": 4}, {"weight": torch.zeros(3)})
    state, tensors = Checkpoint("a" * 32).load()
    assert state == {"epoch": 3} and len(tensors["weight"]) == 100


def test_only_the_last_save_takes_space(saved):
    for epoch in range(4):
        saved.save({"epoch": epoch}, {"weight": torch.zeros(3)})
    assert len(list(saved.folder.glob("state-*"))) == 1


def test_everything_that_shapes_the_result_shapes_the_fingerprint():
    facts = {"recipe": {"epochs": 1, "seed": 3}, "threads": 2}
    assert fingerprint(facts) == fingerprint({"threads": 2, "recipe": {"seed": 3, "epochs": 1}})
    assert fingerprint(facts) != fingerprint(facts | {"threads": 1})
    code = code_digests("train", "cnn")
    assert {"stages/train.py", "stages/lib/training.py", "stages/lib/architectures/cnn.py"} <= set(
        code
    )
    assert "stages/lib/architectures/mlp.py" not in code and not [
        name for name in code if "tracking" in name
    ]


# --- real processes ---------------------------------------------------------------------------------------------------


def make_project(folder, **changes):
    """Return a scratch project with a small data set whose trainings save after every step."""
    copy_sources(folder)
    project = Project(folder)
    project.environment["DVC_ROOT"] = str(folder)
    project.set(
        dataset="noise",
        model="mlp",
        architectures=["mlp"],
        models__mlp={"hidden": [16], "dropout": 0.1},
    )
    settings = (
        QUICK
        | {"batch_size": 16, "epochs": 12, "ema": 0.9, "device": "cpu", "keep_every": 0}
        | changes
    )
    project.set(**{f"train__{key}": value for key, value in settings.items()})
    module = folder / "stages/lib/checkpoints.py"
    assert "SECONDS_BETWEEN = 6.0" in module.read_text()
    module.write_text(module.read_text().replace("SECONDS_BETWEEN = 6.0", "SECONDS_BETWEEN = 0.0"))
    images = pictures(100)
    raw, split = folder / "data/raw", folder / "data/split"
    for part in ("train", "test"):
        write_tensors(
            raw / f"{part}.safetensors", {"images": images.inputs, "labels": images.targets}
        )
    digests = {part: sha256(raw / f"{part}.safetensors") for part in ("train", "test")}
    write_json(
        raw / "dataset.json",
        asdict(Dataset("noise", "classification", list("abcd"), [1, 6, 6], digests)),
    )
    indices = {"train": torch.arange(80), "validation": torch.arange(80, 100)}
    statistics = {"mean": torch.tensor([0.4]), "std": torch.tensor([0.2])}
    write_tensors(split / "indices.safetensors", indices | statistics)
    write_json(split / "split.json", {"digest": sha256(split / "indices.safetensors")})
    return project


def outputs(project):
    return {name: (project.folder / "models/mlp" / name).read_bytes() for name in OUTPUTS}


def train(project, tracking="off"):
    return project.run("python", "-m", "stages.train", "mlp", LINEUP_TRACKING=tracking).stdout


def start(project, tracking="off"):
    """Start a training without waiting for it."""
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train", "mlp"],
        cwd=project.folder,
        env=project.environment | {"LINEUP_TRACKING": tracking},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def saved_epoch(project):
    """Return the epoch of the checkpoint on disk, -1 if there is none."""
    epochs = [-1]
    for path in (project.folder / ".lineup/checkpoints").glob("*/progress.json"):
        try:
            epochs.append(read_json(path)["state"]["epoch"])
        except (FileNotFoundError, KeyError):
            continue
    return max(epochs)


def wait_for(condition, process=None):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Return a project with a finished training that nothing disturbed."""
    project = make_project(tmp_path_factory.mktemp("undisturbed"))
    train(project)
    return project


def points(project):
    """Return every metric point of the only run in MLflow and the run's status."""
    client = project.client()
    (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    names = set(run.data.metrics) - {"training_seconds"}
    found = [
        (name, p.step, p.value)
        for name in names
        for p in client.get_metric_history(run.info.run_id, name)
    ]
    assert max(Counter(found).values()) == 1
    return sorted(found), run.info.status, len(client.search_model_versions("name = 'noise'"))


@pytest.mark.slow
def test_killed_by_every_signal_in_turn_a_training_ends_as_if_nothing_had_happened(
    tmp_path, undisturbed
):
    project = make_project(tmp_path)
    for epoch, number in [(2, signal.SIGKILL), (5, signal.SIGTERM), (8, signal.SIGINT)]:
        process = start(project, tracking="on")
        wait_for(lambda epoch=epoch: saved_epoch(project) >= epoch, process)
        process.send_signal(number)
        output, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode in (-number, 130), output
        assert number == signal.SIGKILL or "the same command resumes there" in output
        assert "Traceback" not in output and not (tmp_path / "models").exists()
    assert "resumes at epoch" in train(project, tracking="on")
    assert outputs(project) == outputs(undisturbed)
    history = (project.folder / "models/mlp/history.csv").read_text().splitlines()
    found, status, versions = points(project)
    assert Counter(name for name, _, _ in found)["val_loss"] == len(history) - 1 == 12
    assert (
        Counter(name for name, _, _ in found)["step_loss"] == 12 * 3
    )  # five steps an epoch, every second and the last
    assert (status, versions) == ("FINISHED", 1)

    run_id = read_json(project.folder / "models/mlp/run.json")
    (
        project.folder / "models/mlp/model.safetensors"
    ).unlink()  # dvc died before it wrote dvc.lock: all over again
    train(project, tracking="on")
    assert (
        outputs(project) == outputs(undisturbed)
        and read_json(project.folder / "models/mlp/run.json") == run_id
    )
    assert points(project) == (found, "FINISHED", 1)


def test_two_runs_write_the_same_bytes(tmp_path, undisturbed):
    project = make_project(tmp_path)
    assert "resumes" not in train(project)
    assert outputs(project) == outputs(undisturbed)


def test_a_damaged_checkpoint_is_reported_by_the_stage_and_does_no_harm(undisturbed):
    expected = outputs(undisturbed)
    (path,) = (undisturbed.folder / ".lineup/checkpoints").glob("*/state-*")
    flip(path)
    output = train(undisturbed)
    assert "warning: the checkpoint in" in output and "resumes" not in output
    assert outputs(undisturbed) == expected


def test_of_two_trainings_of_the_same_the_second_waits_and_both_end_alike(tmp_path, undisturbed):
    project = make_project(tmp_path)
    both = [start(project), start(project)]
    texts = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], texts
    assert sum("another process trains just this; waiting" in text for text in texts) == 1
    assert sum("epoch 1/12" in text for text in texts) == 1
    assert outputs(project) == outputs(undisturbed)


def test_other_params_never_meet_the_checkpoint(undisturbed, tmp_path):
    project = make_project(tmp_path)
    process = start(project)
    wait_for(lambda: saved_epoch(project) >= 1, process)
    process.kill()
    process.communicate()
    project.set(train__learning_rate=load_params().train.learning_rate / 2)
    assert "resumes" not in train(project)
    project.set(train__learning_rate=load_params().train.learning_rate)
    assert "resumes" in train(project)
    assert outputs(project) == outputs(undisturbed)


WAITING = """
import time
from lineup.training.checkpoints import end_with_parent
end_with_parent()
print('on', flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("shell", [False, True], ids=["direct", "through a shell"])
def test_under_dvc_a_training_ends_when_its_parent_is_killed_even_if_nobody_reaps_it(shell):
    child = (
        ["sh", "-c", f'{sys.executable} -c "$0"; true', WAITING]
        if shell
        else [sys.executable, "-c", WAITING]
    )
    code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, *child],
        env=os.environ | {"DVC_STAGE": "train@mlp"},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout.readline() == "on\n"
    (training,) = [
        p for p in psutil.Process(parent.pid).children(recursive=True) if p.name() != "sh"
    ]
    parent.kill()  # and no wait(): it stays a zombie
    wait_for(lambda: not training.is_running() or training.status() == psutil.STATUS_ZOMBIE)
    parent.wait()


def test_without_dvc_a_training_outlives_its_parent():
    environment = {key: value for key, value in os.environ.items() if key != "DVC_STAGE"}
    code = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    short = WAITING.replace("600", "2") + "print('end')"
    command = [sys.executable, "-c", code, sys.executable, "-c", short]
    cwd = Path(__file__).parents[1]
    parent = subprocess.Popen(command, env=environment, cwd=cwd, stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "on\n"
    parent.kill()
    assert parent.stdout.readline() == "end\n"
    parent.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a process that is adopted by init")
def test_a_training_whose_dvc_died_before_it_could_look_ends_at_once():
    late = "import time; time.sleep(1); " + WAITING
    code = "import subprocess, sys; subprocess.Popen(sys.argv[1:])"
    adopted = subprocess.run(
        [sys.executable, "-c", code, sys.executable, "-c", late],
        env=os.environ | {"DVC_STAGE": "train@mlp"},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        timeout=PATIENCE,
    )  # returns when the orphan has closed its output
    assert b"on" not in adopted.stdout


# --- at exact places, and under the real dvc --------------------------------------------------------------------------

KILLED_AT = """
import os, signal, sys
from importlib import import_module
module, _, name = sys.argv[1].rpartition(".")
times = int(sys.argv[2])
victim = {"training": os.getpid(), "courier": 0}[sys.argv[3]]
owner = import_module(module) if not module.endswith(("Report", "Courier")) else None
if owner is None:
    parent, _, kind = module.rpartition(".")
    owner = getattr(import_module(parent), kind)
honest = getattr(owner, name)
calls = []
def deadly(*args, **options):
    calls.append(1)
    if len(calls) == times:
        os.kill(victim or os.getpid(), signal.SIGKILL)
    return honest(*args, **options)
setattr(owner, name, deadly)
from stages.train import main
main("mlp")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "times"),
    [
        ("lineup.training.checkpoints.write_tensors", 7),  # before a checkpoint's tensors
        ("lineup.training.checkpoints.write_json", 8),  # between them and progress.json
        ("lineup.tensors.write_tensors", 1),  # before the outputs
        ("lineup.files.write_rows", 1),  # between the outputs
        ("lineup.files.write_json", 1),
        ("lineup.files.write_json", 2),
        ("lineup.training.reporting.Report.finish", 1),  # after the outputs
        ("lineup.tracking.Courier.finish", 1),
        ("lineup.tracking.registry.log_model", 1),  # while the courier brings MLflow the model
        ("lineup.tracking.store.create_store", 1),
        ("lineup.tracking.runs.dataset_entity", 1),
    ],
)
def test_killed_at_an_exact_place_a_training_ends_as_if_nothing_had_happened(
    place, times, tmp_path, undisturbed
):
    project = make_project(tmp_path)
    died = project.run("python", "-c", KILLED_AT, place, str(times), "training", check=False)
    assert died.returncode == -signal.SIGKILL, died.stdout + died.stderr
    train(project, tracking="on")
    assert outputs(project) == outputs(undisturbed)
    assert_recorded_once(project)


@pytest.mark.slow
@pytest.mark.parametrize(
    "place", ["registry.log_model", "store.create_store", "runs.dataset_entity"]
)
def test_a_courier_killed_at_an_exact_place_costs_neither_the_training_nor_a_point(
    place, tmp_path, undisturbed
):
    project = make_project(tmp_path)
    trained = project.run("python", "-c", KILLED_AT, f"lineup.tracking{place}", "1", "courier")
    assert "not in MLflow yet; later: make sync" in trained.stdout
    assert outputs(project) == outputs(undisturbed)
    project.run("python", "-m", "stages.sync")
    assert_recorded_once(project)


SPAWNED = """
from lineup.tracking import courier
from stages.train import main
courier.START = "spawn"
main("mlp")
"""


@pytest.mark.slow
def test_a_courier_that_is_no_fork_delivers_the_same(tmp_path, undisturbed):
    project = make_project(tmp_path)
    project.run("python", "-c", SPAWNED)
    assert outputs(project) == outputs(undisturbed)
    assert_recorded_once(project)


def assert_recorded_once(project):
    found, status, versions = points(project)
    assert Counter(name for name, _, _ in found)["val_loss"] == 12
    assert Counter(name for name, _, _ in found)["step_loss"] == 12 * 3
    assert (status, versions) == ("FINISHED", 1)


@pytest.mark.slow
def test_killing_dvc_alone_ends_its_training_and_the_next_repro_resumes_it(project_factory):
    project = project_factory("killed-dvc")
    project.set(architectures=["mlp"], model="mlp", train__epochs=400, train__log_every=50)
    module = project.folder / "stages/lib/checkpoints.py"
    module.write_text(module.read_text().replace("SECONDS_BETWEEN = 6.0", "SECONDS_BETWEEN = 0.2"))
    command = [sys.executable, "-m", "dvc", "repro", "train@mlp"]
    with (project.folder / "dvc.log").open("w") as log:
        dvc = subprocess.Popen(
            command, cwd=project.folder, env=project.environment, stdout=log, stderr=log
        )
    wait_for(lambda: saved_epoch(project) >= 20, dvc)
    started = [
        p for p in psutil.Process(dvc.pid).children(recursive=True) if "stages.train" in p.cmdline()
    ]
    assert len(started) == 2  # the training and its courier
    dvc.kill()
    for process in started:
        wait_for(
            lambda process=process: (
                not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
            )
        )
    dvc.wait()
    assert (
        saved_epoch(project) < 400
        and not (project.folder / "models/mlp/model.safetensors").exists()
    )
    assert "mlp: resumes at epoch" in project.run(*command).stdout
    assert len((project.folder / "models/mlp/history.csv").read_text().splitlines()) == 401
