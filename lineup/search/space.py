"""What a search may set: the ranges that params.yaml has for one architecture."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lineup.errors import UserError
from lineup.params import Params, check_recipe, flatten
from lineup.ranges import Range, rounded

if TYPE_CHECKING:  # a second to import
    import optuna

EXAMPLE = "{learning_rate: {log: [0.001, 0.1]}}"


@dataclass(frozen=True)
class Space:
    """The ranges of an architecture's settings, and the params that they change."""

    params: Params
    architecture: str
    ranges: dict[str, Range]

    @classmethod
    def of(cls, params: Params, architecture: str) -> Space:
        """Return the space of `architecture`; UserError where params.yaml has no valid one."""
        ranges = params.search.get(architecture)
        if not ranges:
            hint = f"write some below search:, such as {architecture}: {EXAMPLE}"
            raise UserError(f"params.yaml: search has no ranges for '{architecture}'; {hint}")
        space = cls(params, architecture, ranges)
        for key, limits in ranges.items():
            for value in limits.values:
                space._check(key, value)
        return space

    def _check(self, key: str, value: Any) -> None:  # noqa: ANN401
        try:
            self.changed({key: value})
        except UserError as error:
            place = f"search.{self.architecture}.{key}"
            raise UserError(f"{error} ({place} of params.yaml has {value!r})") from None

    def changed(self, settings: dict[str, Any]) -> Params:
        """Return params with `settings` in them; UserError where they don't fit."""
        params = self.params.changed(self.architecture, settings)
        check_recipe(params, self.architecture)
        return params

    def draw(self, trial: optuna.Trial) -> dict[str, Any]:
        """Return a value for each setting."""
        return {key: _draw(trial, key, limits) for key, limits in self.ranges.items()}

    def current(self, hyperparameters: dict[str, Any]) -> dict[str, Any] | None:
        """Return params.yaml's own settings as Optuna stores them; None if one is out of range.

        `hyperparameters` are all of the architecture's, defaults included.
        """
        recipe, _ = self.params.recipe(self.architecture)
        values = flatten(recipe.model_dump()) | hyperparameters
        found = {key: _encode(limits, values.get(key)) for key, limits in self.ranges.items()}
        return None if None in found.values() else found

    def command(self, settings: dict[str, Any]) -> str:
        """Return the command that trains with `settings`."""
        params, name = self.params, self.architecture
        known = flatten(params.models[name])
        values = {f"models.{name}.{key}": value for key, value in settings.items()}
        if name not in params.architectures:
            values["architectures"] = [*params.architectures, name]
        words = ["dvc exp run"]
        for key, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            is_new = key.startswith("models.") and key.split(".", 2)[2] not in known
            setting = f"{'+' if is_new else ''}{key}={text}"
            words.append(f"-S {shlex.quote(setting)}")
        return " ".join(words)


def _draw(trial: optuna.Trial, key: str, limits: Range) -> Any:  # noqa: ANN401
    match limits.kind:
        case "choice":  # a study keeps texts, not lists
            choices = [json.dumps(value) for value in limits.values]
            return json.loads(trial.suggest_categorical(key, choices))
        case "int":
            return trial.suggest_int(key, *limits.values)
        case kind:
            return rounded(trial.suggest_float(key, *limits.values, log=kind == "log"), limits)


def _encode(limits: Range, value: Any) -> Any:  # noqa: ANN401
    """Return what a study has for a value; None if it isn't in the range."""
    if limits.kind == "choice":
        is_inside = value in limits.values  # 0.0 is in [0, 1]
        return json.dumps(limits.values[limits.values.index(value)]) if is_inside else None
    low, high = limits.values
    return value if type(value) in (int, float) and low <= value <= high else None
