"""Ranges and what is drawn from them: valid, typed by hand, and known when params.yaml has it already."""

import math

import optuna
import pytest
from helpers.project import ROOT
from pydantic import TypeAdapter, ValidationError

from lineup.architectures import complete
from lineup.errors import UserError
from lineup.params import load_params
from lineup.ranges import Range, rounded
from lineup.search.space import Space


def range_of(content):
    return TypeAdapter(Range).validate_python(content)


@pytest.fixture
def space():
    """Return a function that makes the space of ranges for the shipped mlp."""
    params = load_params(ROOT / "params.yaml")

    def make(**ranges):
        found = {key: range_of(content) for key, content in ranges.items()}
        return Space.of(params.model_copy(update={"search": {"mlp": found}}), "mlp")

    return make


@pytest.mark.parametrize(
    "content",
    [
        {"int": [1, 10**400]},
        {"float": [0, math.inf]},
        {"float": [0, math.nan]},
        {"log": [0, 1]},
        {"float": [1, 1]},
        {"float": [True, 2]},
        {"choice": [3]},
        {"choice": [3, 3]},
        {"float": [1, 2], "int": [1, 2]},
        {"uniform": [1, 2]},
        [1, 2],
        {},
    ],
)
def test_what_is_no_range_is_refused(content):
    with pytest.raises(ValidationError, match=r"must be one of float: \[low, high\]"):
        range_of(content)


def test_a_drawn_number_can_be_typed_stays_in_its_range_and_is_fine_enough():
    near_one = range_of({"float": [0.99, 0.9999]})
    assert rounded(0.999612345, near_one) == 0.99961 and rounded(0.99989999, near_one) == 0.9999
    assert rounded(0.0123456, range_of({"log": [0.001, 0.1]})) == 0.0123
    assert rounded(7.123456, range_of({"float": [0, 15]})) == 7.1


def test_settings_become_those_of_the_recipe_also_within_sections(space):
    found = space(**{"augment.rotate": {"float": [0, 30]}, "hidden": {"choice": [[8], [16]]}})
    recipe, hyperparameters = found.changed({"augment.rotate": 9, "hidden": [8]}).recipe("mlp")
    assert recipe.augment.rotate == 9 and hyperparameters == {"hidden": [8]}
    assert recipe.augment.shift == found.params.train.augment.shift


def test_what_params_yaml_has_is_the_first_trial_whatever_its_type(space):
    found = space(clip_norm={"choice": [0, 1]}, batch_size={"int": [64, 512]})
    current = found.current({})  # 0.0 in the recipe
    study = optuna.create_study()
    study.enqueue_trial(current)
    assert found.draw(study.ask()) == {"clip_norm": 0, "batch_size": 256}
    assert space(learning_rate={"log": [0.5, 1]}).current({}) is None


def test_the_first_trial_has_the_defaults_of_what_params_yaml_leaves_out(space):
    found, defaults = space(activation={"choice": ["relu", "gelu"]}), complete("mlp", {})
    assert found.current(defaults) == {"activation": f'"{defaults["activation"]}"'}


def test_settings_that_fit_no_recipe_are_refused_with_their_place(space):
    with pytest.raises(UserError, match=r"search\.mlp\.schedule of params\.yaml has 'step'"):
        space(schedule={"choice": ["step", "cosine"]})
    with pytest.raises(UserError, match=r"search\.mlp\.learning_rate\.low of params\.yaml"):
        space(**{"learning_rate.low": {"float": [1, 2]}})


def test_the_command_adds_the_architecture_where_the_line_up_lacks_it(space):
    found = space(optimizer={"choice": ["sgd", "adam"]}, passes={"int": [1, 9]})
    assert found.command({"optimizer": "adam", "passes": 5}) == (
        "dvc exp run -S +models.mlp.optimizer=adam -S models.mlp.passes=5"
    )
    fewer = found.params.model_copy(update={"architectures": ["cnn"]})
    text = Space(fewer, "mlp", found.ranges).command({"passes": 5})
    assert text.endswith('-S \'architectures=["cnn","mlp"]\'')
