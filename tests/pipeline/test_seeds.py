"""Several seeds: each is the training that `dvc repro` does, kept, scored once, and compared in pairs."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lineup.evaluation.seeds import (
    compare_settings,
    readable_differences,
    report,
    summarise,
    verdicts,
)
from lineup.files import read_json, sha256

SEEDS = ("python", "-m", "stages.seeds")


@pytest.fixture(scope="module")
def table():
    """A table as the command makes it, of two settings and four seeds."""
    values = {"as it is": [0.9, 0.92, 0.91, 0.93], "changed": [0.92, 0.93, 0.93, 0.94]}
    rows = [
        {"architecture": "cnn", "setting": setting, "seed": seed, "val_accuracy": value}
        for setting, accuracies in values.items()
        for seed, value in enumerate(accuracies)
    ]
    table = pd.DataFrame(rows).assign(seconds=[1.0, 2.0, 3.0, np.nan] * 2)
    return table.assign(processor="a new one")


def test_the_interval_is_that_of_a_paired_t_test(table):
    (found,) = compare_settings(table, 0.95).to_dict("records")
    differences = np.array([2.0, 1, 2, 1])
    half = 3.182446 * differences.std(ddof=1) / 2  # Student's t of 3 degrees, at 97.5 %
    assert found["difference"] == pytest.approx(1.5)
    assert (found["low"], found["high"]) == pytest.approx((1.5 - half, 1.5 + half), rel=1e-5)
    differences = compare_settings(table, 0.95)
    assert verdicts(differences, "accuracy", 0.95) == ["cnn: the change is better"]
    assert verdicts(differences, "loss", 0.95) == ["cnn: the change is worse"]
    assert verdicts(differences, "accuracy", 0.999) == [
        "cnn: no difference that these seeds can show"
    ]


def test_equal_differences_can_not_be_tested(table):
    same = table.assign(val_accuracy=0.5)
    (row,) = readable_differences(compare_settings(same, 0.95), "accuracy", 0.95)
    assert row["p"] == row["95 % interval"] == "–"
    assert "no difference" in verdicts(compare_settings(same, 0.95), "accuracy", 0.95)[0]


def test_differences_that_rounding_alone_tells_apart_are_equal(table):
    images = np.array([51, 53, 52, 54, 52, 54, 53, 55]) / 60  # one image more with each seed
    differences = compare_settings(table.assign(val_accuracy=images), 0.95)
    assert np.isnan(differences["p"][0]) and differences["difference"][0] == pytest.approx(100 / 60)
    assert "more seeds" in verdicts(differences, "accuracy", 0.95)[0]


def test_the_summary_has_mean_and_standard_deviation(table):
    first, second = summarise(table)
    assert first["validation"] == "91.50 ± 1.29 %" and second["validation"] == "93.00 ± 0.82 %"
    assert first["n"] == "4" and first["seconds"] == "2.0" and "test" not in first
    regression = table.rename(columns={"val_accuracy": "val_loss"})
    assert summarise(regression)[0]["validation"] == "0.915 ± 0.013"


@pytest.mark.slow
def test_every_seed_is_the_training_of_dvc_repro_and_trained_once(project):
    printed = project.run(*SEEDS, "linear", "mlp", "--seeds", "2").stdout
    found = pd.read_csv("seeds/seeds.csv").set_index(["architecture", "seed"])
    assert list(found.index) == [("linear", 3), ("linear", 4), ("mlp", 3), ("mlp", 4)]
    for name in ("linear", "mlp"):  # two ways to a number
        scores = read_json(Path("evaluation", name, "metrics.json"))
        row = found.loc[(name, 3)]
        assert {key: row[key] for key in scores} == pytest.approx(scores)
    kept = {sha256(path) for path in Path(".lineup/seeds").glob("*/model.safetensors")}
    assert len(kept) == 4
    assert {sha256(Path("models", name, "model.safetensors")) for name in ("linear", "mlp")} < kept
    assert (
        "2 seeds, 3 to 4" in Path("seeds/seeds.md").read_text() and Path("seeds/seeds.png").exists()
    )

    client = project.client()
    tags = [run.data.tags["settings"] for run in runs_of(client, "linear")]
    assert len(tags) == 3 and len(set(tags)) == 1  # of dvc repro, and of two seeds
    assert {run.data.tags["settings"] for run in runs_of(client, "mlp")}.isdisjoint(tags)
    recorded = {run.info.run_id: run.data.metrics for run in runs_of(client, "linear")}
    accuracies = [metrics["test_accuracy"] for metrics in recorded.values()]
    expected = [*found.loc["linear"]["test_accuracy"], found.loc[("linear", 3)]["test_accuracy"]]
    assert sorted(accuracies) == pytest.approx(sorted(expected))

    again = project.run(*SEEDS, "linear", "--seeds", "2").stdout
    assert "epoch" in printed and "epoch" not in again
    pd.testing.assert_frame_equal(
        pd.read_csv("seeds/seeds.csv"), found.loc[["linear"]].reset_index(), check_like=True
    )
    checkpoints = list(Path(".lineup/checkpoints").glob("*/state-*"))
    assert len(checkpoints) == 2  # of the seed that dvc repro may go on with
    assert "never evaluated" not in project.run("python", "-m", "stages.sync").stdout


@pytest.mark.slow
def test_code_that_is_edited_meanwhile_counts_from_the_next_command_on(project):
    project.set(train__epochs=200)
    seeds = project.start(*SEEDS, "linear", "--seeds", "2", LINEUP_TRACKING="off")
    seeds.pause_after("seed 3")
    with Path("lineup/training/augmentation.py").open("a") as source:
        source.write("# edited\n")
    seeds.go_on()
    seeds.output()
    assert len(list(Path(".lineup/seeds").glob("*/done.json"))) == 2
    again = project.run(*SEEDS, "linear", "--seeds", "2", LINEUP_TRACKING="off").stdout
    assert "seed 3" in again and "seed 4" in again  # nothing of the old code is taken for the new
    assert len(list(Path(".lineup/seeds").glob("*/done.json"))) == 4


@pytest.mark.slow
def test_trainings_on_different_splits_are_not_put_together(project):
    project.set(train__epochs=200)
    seeds = project.start(*SEEDS, "linear", "--seeds", "2", LINEUP_TRACKING="off")
    seeds.pause_after("seed 3")
    project.set(split__seed=9)
    project.run("python", "-m", "stages.split")
    seeds.go_on()
    assert "data/ was changed meanwhile; run the same command again" in seeds.output(2)
    assert not Path("seeds").exists()


def test_a_comparison_says_where_several_processors_trained(table, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = table.to_dict("records")
    report(rows, "4 seeds", "models.cnn.dropout=0.1", 0.95)
    assert "several processors" not in Path("seeds/seeds.md").read_text()
    rows[0]["processor"] = "an older one"
    report(rows, "4 seeds", "models.cnn.dropout=0.1", 0.95)
    for said in (capsys.readouterr().out, Path("seeds/seeds.md").read_text()):
        assert "several processors, whose results may differ slightly: a new one, an older" in said


def runs_of(client, architecture):
    """Return all runs of an architecture."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return client.search_runs(experiments, f"tags.architecture = '{architecture}'")


def test_two_settings_are_compared_on_validation_and_the_test_stays_closed(project):
    before = Path("params.yaml").read_text()
    Path("data/raw/test.safetensors").unlink()
    change = ("--against", "models.linear.learning_rate=0.3")
    printed = project.run(*SEEDS, "--seeds", "3", *change, LINEUP_TRACKING="off").stdout
    found = pd.read_csv("seeds/seeds.csv")
    assert set(found["architecture"]) == {"linear"}  # mlp has no such setting
    assert not [column for column in found if column.startswith("test_")]
    means = found.groupby("setting")["val_accuracy"].mean()
    difference = 100 * (means["changed"] - means["as it is"])
    (verdict,) = verdicts(compare_settings(found, 0.95), "accuracy", 0.95)
    assert f"{difference:+.3g}" in printed and verdict in printed.splitlines()
    assert "changed: models.linear.learning_rate=0.3" in Path("seeds/seeds.md").read_text()
    assert Path("params.yaml").read_text() == before


def test_a_change_that_can_not_be_trained_is_said_before_all_others_are(project):
    done = project.run(*SEEDS, "mlp", "--against", "models.mlp.hidden=[0]", check=False)
    assert done.returncode == 2 and "models.mlp.hidden" in done.stderr
    assert len(list(Path(".lineup/seeds").glob("*/done.json"))) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "dataset=mnist"], "only settings of train and models can be compared"),
        (["--against", "seed=7"], "only settings of train and models can be compared"),
        (["--against", "models.cnn.learning_rate=0.1"], "changes none of these trainings"),
        (["--against", "models.mlp.lr=3"], "Could not override 'models.mlp.lr'; write KEY=VALUE"),
        (["--against", "train.epochs=range(1,3)"], "with one value"),
        (["--against", "train.epochs=1,2"], "with one value"),
        (["--against", "nonsense"], "write KEY=VALUE, as for -S"),
        (["--against", "train.learning_rate=-1"], "train.learning_rate = -1: input should be"),
        (
            ["--against", "train.precision=portable", "--against", "train.threads=1"],
            "name only what",
        ),
        (["lin"], "unknown architecture 'lin'; did you mean 'linear'?"),
    ],
)
def test_what_can_not_be_compared_is_said_in_a_line(project, words, message):
    shutil.rmtree("data/raw")  # nothing is needed to see the mistake
    done = project.run(*SEEDS, *words, check=False)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not Path("seeds").exists()
