"""The registry: one version per model, aliases that move for a reason, a gate before champion."""

import re
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest
import torch
from helpers.store import changes_of, contents, runs, stage, use_store
from mlflow.exceptions import MlflowException

from lineup.files import read_json, sha256, write_json
from lineup.tensors import read_tensors, write_tensors
from lineup.tracking.catalog import registered_architectures
from lineup.tracking.names import MODEL_TAG, RUN_ID
from lineup.tracking.registry import aliased, is_model_deleted
from lineup.tracking.run_log import RunLog, now_ms
from lineup.tracking.sqlite_tables import find_model_locally
from lineup.tracking.sync import record_evaluations, record_export

GATE = {"promote": "gate", "level": 0.05, "margin": 0.002}
COUNT = 48  # validation images


@pytest.fixture
def registry(project):
    """A client of a registry that holds nothing yet."""
    project.client().delete_registered_model("digits")
    shutil.rmtree(".lineup")
    for run in runs(project.client()).values():
        project.client().delete_run(run.info.run_id)
    return project.client()


def train(correct, weights=None, split=None, architecture="linear", errors=None, **changes):
    """Pretend that a training ended whose model gets these validation images right; evaluate it.

    `correct` is bool (N,), or how many of the first are right; `errors` are those of a regression.
    """
    if isinstance(correct, int):
        correct = torch.arange(COUNT) < correct
    trained, evaluated = Path("models") / architecture, Path("evaluation") / architecture
    path = trained / "model.safetensors"
    tensors = read_tensors(path)
    seed = uuid.uuid4().int % 2**60 if weights is None else weights
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.rand(value.shape, generator=generator) for name, value in tensors.items()}
    write_tensors(path, noise)
    changes |= {"weights_sha256": sha256(path)} | ({"split": split} if split else {})
    for folder in (trained, evaluated):
        write_json(folder / "model.json", read_json(folder / "model.json") | changes)
    write_json(trained / "run.json", {"run_id": uuid.uuid4().hex})
    accuracy = {"val_accuracy": float(correct.float().mean())}
    write_json(evaluated / "metrics.json", read_json(evaluated / "metrics.json") | accuracy)
    probabilities = torch.zeros(len(correct), 10)
    kept = {"probabilities": probabilities, "correct": correct.byte()}
    if errors:
        loss = {"val_loss": sum(errors) / len(errors)}
        write_json(evaluated / "metrics.json", read_json(evaluated / "metrics.json") | loss)
        kept = {"predictions": torch.zeros(len(errors), 1), "error": torch.tensor(errors)}
    write_tensors(evaluated / "validation.safetensors", kept)
    record_evaluations([architecture])


def export(architecture="linear", **settings):
    return record_export(architecture, GATE | settings)


def aliases(client):
    found = client.get_registered_model("digits").aliases
    return {name: int(number) for name, number in found.items()}


def version(client, number):
    return client.get_model_version("digits", str(number))


def test_a_version_says_what_it_is_and_how_to_get_and_reproduce_it(project):
    client = project.client()
    found = client.get_model_version_by_alias("digits", "champion")
    scores = read_json(Path("evaluation/mlp/metrics.json"))
    assert {name for name in found.tags if name in scores} == {"parameters", "val_accuracy"}
    assert found.tags["val_accuracy"] == str(scores["val_accuracy"])
    model = client.get_logged_model(found.source.removeprefix("models:/"))
    folder = find_model_locally("models:/digits@champion")[0]
    pins = (folder / "requirements.txt").read_text().splitlines()
    assert sorted(re.sub("==.*", "", pin) for pin in pins) == [
        "mlflow",
        "numpy",
        "onnx",
        "onnxruntime",
    ]
    assert list(folder.glob("*input_example*"))
    known = {metric.key: metric.value for metric in model.metrics}
    assert {name: known[name] for name in scores if "_" in name} == {
        name: score for name, score in scores.items() if "_" in name
    }
    for name, score in scores.items():
        assert "_" not in name or f"| {name} | {score:.6g} |" in found.description
    assert found.tags["architecture"] == "mlp" and found.tags["verified"].startswith("equal to")
    first, *_ = found.description.splitlines()
    assert "**mlp** trained on **digits**" in first
    assert "whole numbers 0–255" in first and "fractions are read as black" in first
    for words in (
        "| test_accuracy |",
        f'mlflow.pyfunc.load_model("models:/digits/{found.version}")',
        f'lineup.load("models:/digits/{found.version}")',
        f"git checkout {client.get_run(found.run_id).data.tags['git_commit']}",
        "git apply changes.patch",
        "dvc repro train@mlp",
        "champion: there was no champion",
    ):
        assert words in found.description, words


def test_the_architectures_alias_is_its_newest_training_and_never_moves_back(registry):
    train(10)
    assert aliases(registry) == {"linear": 1}
    for name in ("models", "evaluation"):
        shutil.copytree(name, f"older-{name}")
    train(5)
    assert aliases(registry) == {"linear": 2}
    for name in ("models", "evaluation"):
        shutil.rmtree(name)
        Path(f"older-{name}").rename(name)
    record_evaluations(["linear"])
    assert aliases(registry) == {"linear": 2}


def test_the_same_weights_make_no_second_version_and_no_new_champion(registry):
    train(10, weights=1)
    export()
    reason = version(registry, 1).tags["gate"]
    train(10, weights=1)
    assert "it was the champion already" in export()
    assert aliases(registry) == {"linear": 1, "champion": 1}
    assert version(registry, 1).tags["gate"] == reason == "champion: there was no champion"
    assert len(registry.search_model_versions("name = 'digits'")) == 1
    stage("sync")
    before, changes = contents(registry), changes_of(registry)
    stage("sync")
    assert contents(registry) == before and changes_of(registry) == changes


def test_weights_that_were_trained_again_are_the_newest_training(registry):
    for weights in (1, 2, 1):
        train(10, weights=weights)
    assert aliases(registry) == {"linear": 1}


def test_a_significantly_worse_model_becomes_challenger_with_numbers(registry):
    train(40)
    assert "version 1 is the champion: there was no champion" in export()
    train(20)
    decision = export()
    assert "only it gets 0 right, only champion version 1 20, p = " in decision
    assert "version 2 is the challenger: significantly worse" in decision
    assert aliases(registry) == {"linear": 2, "champion": 1, "challenger": 2}
    gate = version(registry, 2).tags["gate"]
    assert gate in decision.replace("the ", "") or gate.split(": ")[1] in decision
    assert gate in version(registry, 2).description
    assert export(promote="always").endswith("is the champion: export.promote is 'always'")
    assert aliases(registry) == {"linear": 2, "champion": 2}


def test_the_gates_test_is_one_sided_and_of_the_level_that_is_set(registry):
    train(40)
    export()
    train(35)  # of five pairs that differ none is for it: p = 1/32, two-sided 1/16
    assert "p = 0.0312 in the exact McNemar test" in export(margin=1)
    assert aliases(registry)["challenger"] == 2
    assert "version 2 is the champion" in export(level=0.03, margin=1)


def test_a_better_and_an_equal_model_move_the_champion(registry):
    train(20)
    export()
    train(40)
    assert "version 2 is the champion: better" in export()
    train(40)
    assert "version 3 is the champion: not significantly worse" in export()
    assert "it was the champion already" in export()
    assert "not significantly worse" in version(registry, 3).tags["gate"]  # the reason stays
    assert aliases(registry) == {"linear": 3, "champion": 3}


def test_never_promotes_nothing_and_takes_nothing_from_the_champion(registry):
    train(20)
    assert "challenger" in export(promote="never")
    assert aliases(registry) == {"linear": 1, "challenger": 1}
    export()
    export(promote="never")
    assert aliases(registry) == {"linear": 1, "champion": 1}


def test_champions_cannot_sink_step_by_step(registry):
    margin = 1.5 / COUNT  # allows one image less than the best, not two
    train(40)
    export()
    train(39)
    assert "champion: not significantly worse" in export(margin=margin)
    train(38)
    decision = export(margin=margin)
    assert "challenger" in decision and f"below the best champion's {40 / COUNT:.4f}" in decision
    assert aliases(registry)["champion"] == 2


@pytest.mark.parametrize("obstacle", ["another split", "an older Lineup"])
def test_what_cannot_be_compared_becomes_challenger_and_says_how_to_replace(registry, obstacle):
    train(20)
    export()
    if obstacle == "an older Lineup":
        registry.delete_model_version_tag("digits", "1", "verified")
    train(40, split="f" * 64 if obstacle == "another split" else None)
    decision = export()
    assert "challenger" in decision and obstacle in decision
    assert "dvc exp run -S export.promote=always" in decision
    assert aliases(registry)["champion"] == 1


def test_after_a_champion_by_force_the_gate_measures_by_that_one(registry):
    train(40)
    export()
    train(20, weights=1)
    export(promote="always")
    train(21)
    assert "champion: better" in export()
    train(20, weights=1)
    assert "is the challenger" in export(margin=0.5 / COUNT)
    train(19)
    assert f"below the best champion's {21 / COUNT:.4f}" in export()


def test_a_regression_that_is_nearer_on_one_row_and_far_off_on_others_is_no_champion(registry):
    train(COUNT, errors=[1.0] * 5)
    export()
    train(COUNT, errors=[0.5, *[1e6] * 4])
    decision = export()
    assert (
        "challenger: its mean squared error 800000 is above the 1 of the best champion" in decision
    )
    train(COUNT, errors=[2.0, 2.0, *[0.1] * 3])
    assert "of 5 validation examples only it is nearer on 3, only champion version 1 2" in export()


def test_champions_of_a_regression_cannot_sink_step_by_step_either(registry):
    for error in (1.0, 1.0015):  # each within 0.002 of the one before
        train(COUNT, errors=[error] * 4, task="regression")  # too few for the gate's test
        assert "is the champion" in export()
    train(COUNT, errors=[1.003] * 4, task="regression")
    assert "its mean squared error 1.003 is above the 1 of the best champion" in export()
    said = version(registry, 3).description
    assert "rows that it was trained on" in said and "Pixels" not in said
    assert aliases(registry)["champion"] == 2


def test_a_champion_that_is_exported_by_force_is_what_the_gate_measures_by(registry):
    margin = 1.5 / COUNT
    for correct in (40, 39):
        train(correct)
        export(margin=margin)
    train(38, weights=1)
    assert "below the best champion's" in export(margin=margin)
    train(39, weights=2)
    export(margin=margin)
    assert "it was the champion already" in export(promote="always")
    train(38, weights=1)
    assert "is the champion: not significantly worse" in export(margin=margin)


def test_the_champion_itself_counts_among_the_best_whoever_made_it_champion(registry):
    train(40)
    registry.set_registered_model_alias("digits", "champion", "1")  # by hand
    train(38)
    assert f"below the best champion's {40 / COUNT:.4f}" in export(margin=1.5 / COUNT)


def test_a_version_whose_model_was_deleted_is_replaced_and_blocks_no_gate(registry):
    train(40)
    export()
    delete_model(registry, 1)
    stage("sync")
    assert aliases(registry) == {"linear": 2, "champion": 2}
    assert "whose model was deleted, anew" in version(registry, 2).tags["gate"]
    delete_model(registry, 2)
    train(41)
    decision = export()
    assert "challenger" in decision and "has lost its files" in decision
    assert "champion" in export(promote="always") and aliases(registry)["champion"] == 3


def test_a_version_whose_run_and_model_were_deleted_is_replaced_by_an_equal_trainings(registry):
    train(40, weights=7)
    export()
    train(40, weights=7)  # no second version
    export()
    assert aliases(registry) == {"linear": 1, "champion": 1}
    registry.delete_run(version(registry, 1).run_id)
    delete_model(registry, 1)
    stage("sync")
    assert aliases(registry) == {"linear": 2, "champion": 2}
    assert not is_model_deleted(registry, version(registry, 2))


def delete_model(client, number):
    """Do as a person who deletes a logged model in MLflow's pages."""
    client.delete_logged_model(version(client, number).source.removeprefix("models:/"))


def test_an_alias_of_a_persons_own_is_no_architecture(registry):
    train(40)
    export()
    registry.set_registered_model_alias("digits", "production", "1")
    assert registered_architectures("digits") == {"linear": "models:/digits@linear"}


def test_equal_weights_that_were_judged_by_other_pictures_are_a_version_of_their_own(registry):
    train(20, weights=7)
    train(20, weights=7)
    assert set(aliases(registry).values()) == {1}
    train(30, weights=7, split="f" * 64)
    assert aliases(registry)["linear"] == 2
    first, second = (version(registry, number).tags for number in (1, 2))
    assert float(first["val_accuracy"]) == pytest.approx(20 / COUNT)
    assert float(second["val_accuracy"]) == pytest.approx(30 / COUNT)
    train(30, weights=7, split="f" * 64, data={"train": "a" * 64, "test": "b" * 64})
    assert aliases(registry)["linear"] == 3


@pytest.mark.parametrize(
    "change",
    [{"classes": [f"figure {number}" for number in range(10)]}, {"hyperparameters": {"x": 1}}],
)
def test_equal_weights_that_answer_otherwise_are_a_version_of_their_own(registry, change):
    train(20, weights=7)
    export()
    train(20, weights=7, **change)
    assert aliases(registry) == {"linear": 2, "champion": 1}
    assert "not significantly worse" in export()
    assert aliases(registry) == {"linear": 2, "champion": 2}


def test_a_version_of_before_the_digest_of_models_is_known_again(registry):
    train(20, weights=7)
    registry.delete_model_version_tag("digits", "1", MODEL_TAG)
    train(20, weights=7)
    assert len(registry.search_model_versions("name = 'digits'")) == 1
    train(20, weights=7, classes=[f"figure {number}" for number in range(10)])
    assert aliases(registry) == {"linear": 2}
    stage("sync")
    assert MODEL_TAG in version(registry, 1).tags


def test_the_gate_reads_stored_correctness_and_opens_no_model(registry):
    train(20)
    export()
    for path in Path("mlartifacts").rglob("model.*"):
        path.write_bytes(b"no model")
    train(40)
    assert "version 2 is the champion: better" in export()


def test_exports_are_decided_about_in_their_order_also_where_they_waited(registry, monkeypatch):
    for correct in (40, 20, 41):  # exported in another order than trained
        train(correct)
        for name in ("models", "evaluation"):
            shutil.copytree(name, f"{correct}-{name}")
    use_store(monkeypatch, "http://127.0.0.1:9")  # nobody is there
    for correct in (20, 40):
        for name in ("models", "evaluation"):
            shutil.rmtree(name)
            shutil.copytree(f"{correct}-{name}", name)
        assert "nothing is lost, make sync asks the gate later" in export()
    use_store(monkeypatch)
    stage("sync")
    assert aliases(registry) == {"linear": 3, "champion": 1}
    assert version(registry, 2).tags["gate"] == "champion: there was no champion"
    assert version(registry, 1).tags["gate"].startswith("champion: better")
    registry.delete_registered_model("digits")
    stage("sync")
    assert aliases(registry) == {"linear": 3, "champion": 1}


def test_an_older_export_takes_nothing_from_a_newer_champion(registry):
    train(40)
    export()
    older = RunLog(read_json(Path("models/linear/run.json"))["run_id"])
    train(41)
    export()
    write_json(older.promotion_file, read_json(older.promotion_file) | {"time": 1})
    registry.delete_model_version_tag("digits", "1", "lineup.promotion")  # as if it had waited
    stage("sync")
    assert aliases(registry)["champion"] == 2


def export_late(registry, correct, later, **settings):
    """Export a model after a later export made a champion; return the gate's reason."""
    train(later)
    record_export("linear", GATE | settings)
    train(correct)
    log = RunLog(read_json(Path("models/linear/run.json"))["run_id"])
    write_json(log.promotion_file, {"time": 1, "is_adopted": False} | GATE)
    stage("sync")
    return version(registry, 2).tags["gate"]


def test_an_export_that_waited_takes_champion_from_a_later_one_that_is_worse(registry):
    reason = export_late(registry, correct=40, later=20)
    assert reason.startswith("champion: champion version 1 was exported after it and is signif")
    assert aliases(registry)["champion"] == 2


def test_an_export_that_waited_loses_to_a_later_one_that_is_as_good_and_names_it(registry):
    reason = export_late(registry, correct=40, later=39)
    assert reason.startswith("challenger: champion version 1 was exported after it and is not")
    assert aliases(registry) == {"linear": 2, "champion": 1, "challenger": 2}


def test_an_export_that_waited_takes_nothing_from_one_that_was_made_champion_by_hand(registry):
    assert "challenger" in export_late(registry, correct=40, later=20, promote="always")
    assert aliases(registry)["champion"] == 1


def test_a_decision_that_broke_off_is_made_by_the_next_sync(registry, monkeypatch):
    answers = iter([True])  # then the server fails

    def is_held_by(*_):
        if next(answers, False):
            return True
        raise ConnectionError("gone")

    train(40)
    with monkeypatch.context() as patch:
        patch.setattr("lineup.tracking.promotion._is_held_by", is_held_by)
        assert "nothing is lost, make sync asks the gate later" in export()
    assert "lineup.promotion" not in version(registry, 1).tags
    stage("sync")
    assert int(version(registry, 1).tags["lineup.promotion"]) > 0
    assert aliases(registry) == {"linear": 1, "champion": 1}


def test_a_decision_that_broke_off_behind_the_alias_keeps_its_force(registry, monkeypatch):
    write, broken = type(registry).set_model_version_tag, []

    def write_or_fail(client, name, number, key, value):
        if key == "gate" and not broken:
            broken.append(key)
            raise ConnectionError("gone")
        write(client, name, number, key, value)

    train(40)
    export()
    train(20)
    assert "is the challenger" in export()
    monkeypatch.setattr(type(registry), "set_model_version_tag", write_or_fail)
    assert "nothing is lost, make sync asks the gate later" in export(promote="always")
    stage("sync")
    tags = version(registry, 2).tags
    assert "lineup.forced_at" in tags and tags["gate"].startswith("champion: ")
    assert aliases(registry) == {"linear": 2, "champion": 2}


def rival(registry, monkeypatch, number):
    """Let another machine make a version champion right after this one did so."""
    move = type(registry).set_registered_model_alias
    rivals = [number]

    def move_both(client, name, alias, moved):
        move(client, name, alias, moved)
        if alias == "champion" and rivals:
            move(client, name, alias, rivals.pop())

    monkeypatch.setattr(type(registry), "set_registered_model_alias", move_both)


def test_who_loses_the_alias_to_another_machine_is_compared_with_its_champion(
    registry, monkeypatch
):
    train(40)
    train(20)
    rival(registry, monkeypatch, "1")
    assert "only champion version 1 20" in export()
    assert aliases(registry) == {"linear": 2, "champion": 1, "challenger": 2}
    assert version(registry, 2).tags["gate"].startswith("challenger: significantly worse")


def test_who_is_as_good_as_another_machines_champion_takes_the_alias_back(registry, monkeypatch):
    train(40)
    train(40)
    rival(registry, monkeypatch, "1")
    assert "version 2 is the champion: not significantly worse" in export()
    assert "champion version 1 0" in version(registry, 2).tags["gate"]
    assert aliases(registry)["champion"] == 2


def test_an_alias_read_too_early_does_not_move_to_an_older_version(registry, monkeypatch):
    train(10)
    for name in ("models", "evaluation"):
        shutil.copytree(name, f"older-{name}")
    train(5)
    for name in ("models", "evaluation"):
        shutil.rmtree(name)
        Path(f"older-{name}").rename(name)
    reads = iter([None])  # before another machine moved it
    monkeypatch.setattr(
        "lineup.tracking.registry.aliased", lambda *names: next(reads, aliased(*names))
    )
    record_evaluations(["linear"])
    assert next(reads, "read") == "read"
    assert aliases(registry) == {"linear": 2}


def test_an_alias_that_two_machines_make_at_once_is_made(registry, monkeypatch):
    move = type(registry).set_registered_model_alias
    refusals = ["UNIQUE constraint failed"]

    def refuse_once(*arguments):
        if refusals:
            raise MlflowException(refusals.pop())
        move(*arguments)

    monkeypatch.setattr(type(registry), "set_registered_model_alias", refuse_once)
    train(40)
    assert not refusals and aliases(registry) == {"linear": 1}


def test_an_export_of_a_deleted_run_says_that_nothing_was_decided(registry):
    train(40)
    registry.delete_run(runs(registry)["linear"].info.run_id)
    assert "or its run deleted" in export()
    assert "champion" not in aliases(registry)


def test_an_alias_is_written_only_when_it_moves(registry, monkeypatch):
    train(40)
    export()
    moved = []
    monkeypatch.setattr(
        type(registry), "set_registered_model_alias", lambda *arguments: moved.append(arguments)
    )
    export()
    stage("sync")
    assert not moved


@pytest.mark.slow
def test_parallel_evaluations_and_exports_of_one_training_make_one_version(project):
    shutil.rmtree(".lineup")
    for path in [*Path().glob("mlflow.db*"), Path("mlartifacts")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    command = ["python", "-m", "stages.export"]
    environment = project.environment
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in processes:
        assert process.communicate(timeout=300)[0] and process.returncode == 0
    client = project.client()
    run = runs(client)["mlp"]
    assert len(client.search_runs([run.info.experiment_id])) == 1
    assert set(contents(client)["models"]) == {run.data.tags[RUN_ID]}
    assert aliases(client) == {"mlp": 1, "champion": 1}
    assert int(version(client, 1).tags["lineup.promotion"]) <= now_ms()


def test_a_clock_set_back_by_a_day_keeps_the_order_of_trainings_and_exports(registry, monkeypatch):
    use_store(monkeypatch)
    train(30)
    assert "there was no champion" in export()
    yesterday = time.time_ns() - 24 * 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: yesterday)
    train(40)
    assert "better" in export()
    assert aliases(registry) == {"champion": 2, "linear": 2}
    assert "better" not in export() and "champion" in export()
    train(5)  # fewer than in its last epoch
    metrics = registry.get_logged_model(version(registry, 3).source.split("/")[-1]).metrics
    points = [metric for metric in metrics if metric.key == "val_accuracy"]
    last = max(points, key=lambda point: (point.step, point.timestamp, point.value))
    assert last.value == pytest.approx(5 / COUNT)  # of the file that ships
