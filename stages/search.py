"""Search for better settings of one architecture, on validation alone."""

from contextlib import ExitStack
from typing import Annotated

import typer

from lineup.cli import run
from lineup.errors import UserError
from lineup.params import load_params
from lineup.paths import SEARCH
from lineup.search.space import Space
from lineup.tracking.location import enabled
from lineup.training.interruption import INTERRUPTED
from lineup.training.portable import limit_instructions


def main(
    architecture: Annotated[str, typer.Argument(help="One of those with ranges in params.yaml.")],
    trials: Annotated[int, typer.Option(min=1, help="How many the study shall have.")] = 40,
    minutes: Annotated[float, typer.Option(min=0.01, help="When to stop before that.")] = 20,
    jobs: Annotated[int, typer.Option(min=1, help="How many at a time, on a cluster.")] = 1,
    storage: Annotated[
        str | None,
        typer.Option(help="A database that several machines share: postgresql://user@host/name"),
    ] = None,
) -> None:
    """Try settings from the ranges that `search:` of params.yaml has for ARCHITECTURE.

    Those that lag behind end early. The same command goes on where it was, and does no trial twice.
    """
    params = load_params()
    recipe, _ = params.recipe(architecture)
    space = Space.of(params, architecture)
    if recipe.precision == "portable":
        limit_instructions()

    from lineup.search.report import report
    from lineup.search.storage import open_storage, owner_of_trials
    from lineup.search.study import Search
    from lineup.training.session import Interrupted

    with open_storage(storage) as studies, ExitStack() as stack:
        search = Search(space, studies, owner_of_trials(storage))
        stack.enter_context(search.lock())
        print(search.introduction)
        recorder = stack.enter_context(search.recorder()) if enabled() else None
        is_interrupted = False
        try:
            search.run(trials, minutes, recorder, jobs)
        except Interrupted:
            is_interrupted = True
        folder = SEARCH / architecture
        best = report(search.study, search.monitor, folder)
        if recorder:
            recorder.add_results(folder)
        if is_interrupted:
            print("interrupted; the same command goes on there")
            raise SystemExit(INTERRUPTED)
    if best is None and search.has_failed:
        raise UserError("every trial failed; change the ranges or the settings")
    if best is None:
        raise UserError("no trial ran to its end yet; the same command goes on")
    print(f"Next: {space.command(best)}")


if __name__ == "__main__":
    run(main)
