"""Train with several seeds: how much of a score, or of a difference between two, is chance."""

from itertools import product
from typing import Annotated

import typer

from lineup.cli import run
from lineup.errors import UserError, nearest
from lineup.params import Params, load_params
from lineup.paths import SEEDS
from lineup.tracking.location import enabled
from lineup.training.portable import limit_instructions


def main(
    architectures: Annotated[
        list[str] | None, typer.Argument(help="Some of params.yaml's; all, if none is named.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, max=1000, help="How many, from `seed` on.")] = 5,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Compare with this setting, written as for -S."),
    ] = None,
) -> None:
    """Train each of ARCHITECTURES with several seeds; what is trained is kept for the next time.

    At the end all are scored on the test set. With --against they are compared on validation, and
    the test set stays closed: settings are not chosen on it.
    """
    params, change = load_params(), " ".join(against or [])
    names, settings = _choose(architectures, params), {"as it is": params}
    if against:
        changed = settings["changed"] = _load_changed(against, params)
        names = [name for name in names if changed.recipe(name) != params.recipe(name)]
        if not names:
            raise UserError(f"{change} changes none of these trainings")
    precisions = {one.recipe(name)[0].precision for one in settings.values() for name in names}
    if precisions == {"portable"}:
        limit_instructions()
    elif "portable" in precisions:
        raise UserError("precision: portable rules a whole process; name only what trains with it")

    from lineup.data.dataset import Split
    from lineup.evaluation.seeds import report, score_all
    from lineup.training.seeds import train_seed

    numbers = range(params.seed, params.seed + seeds)
    if numbers[-1] >= 2**32:
        raise UserError(f"seeds {numbers[0]} to {numbers[-1]} end beyond 2³²; set a smaller seed")
    trained = [
        train_seed(settings[setting], name, seed, setting)
        for name, seed, setting in product(names, numbers, settings)  # a bad change fails early
    ]
    if {one.info.split for one in trained} != {Split.read().digest}:
        raise UserError("data/ was changed meanwhile; run the same command again")
    rows = [one.row for one in trained]
    if not against:
        found = score_all([one.folder for one in trained], params.evaluate)
        rows = [row | scores for row, scores in zip(rows, found, strict=True)]
        if enabled():
            from lineup.tracking.sync import record_scores

            record_scores(rows)

    title = f"{seeds} seeds, {numbers[0]} to {numbers[-1]}"
    report(rows, title, change, params.evaluate.confidence)
    print(f"Next: {SEEDS}/ · make ui, where the runs of one recipe share the tag `settings`")


def _choose(architectures: list[str] | None, params: Params) -> list[str]:
    for name in architectures or []:
        if name not in params.models:
            raise UserError(f"unknown architecture '{name}'; {nearest(name, params.models)}")
    return list(dict.fromkeys(architectures or params.architectures))


def _load_changed(changes: list[str], params: Params) -> Params:
    """Return params.yaml with `changes`, which may be of recipes alone."""
    from lineup.overrides import load_changed  # DVC's reader of -S

    changed = load_changed(changes)
    if changed.model_copy(update={"train": params.train, "models": params.models}) != params:
        raise UserError(f"{' '.join(changes)}: only settings of train and models can be compared")
    return changed


if __name__ == "__main__":
    run(main)
