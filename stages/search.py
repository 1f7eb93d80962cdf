"""Search for better settings of one architecture, on validation alone."""

from contextlib import ExitStack
from typing import Annotated

import typer

from lineup.cli import run
from lineup.errors import UserError
from lineup.params import load_params
from lineup.paths import SEARCH
from lineup.tracking.location import enabled
from lineup.training.interruption import INTERRUPTED
from lineup.training.portable import limit_instructions


def main(
    architecture: Annotated[str, typer.Argument(help="One of those with ranges in params.yaml.")],
    trials: Annotated[int, typer.Option(min=1, help="How many the study shall have.")] = 40,
    minutes: Annotated[float, typer.Option(min=0.01, help="When to stop before that.")] = 20,
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
    if recipe.precision == "portable":
        limit_instructions()

    from lineup.search.report import report
    from lineup.search.space import Space
    from lineup.search.study import Search, opened
    from lineup.training.session import Interrupted

    space = Space.of(params, architecture)
    with opened(storage) as studies, ExitStack() as stack:
        search = Search(space, studies)
        stack.enter_context(search.lock())
        print(search.introduction)
        recorder = stack.enter_context(search.recorder()) if enabled() else None
        code = 0
        try:
            search.run(trials, minutes, recorder)
        except Interrupted:
            code = INTERRUPTED
        best = report(search.study, search.monitor)
        if recorder:
            recorder.add_results(SEARCH)
        if code:
            print("interrupted; the same command goes on there")
            raise SystemExit(code)
    if best is None:
        raise UserError("no trial ran to its end; try more --minutes, or other ranges")
    print(f"Next: dvc exp run {space.overrides(best)}")


if __name__ == "__main__":
    run(main)
