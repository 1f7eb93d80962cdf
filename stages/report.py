"""One HTML page of everything that evaluate found."""

from lineup.cli import run
from lineup.files import write_text
from lineup.paths import REPORT


def main() -> None:
    """Write report.html from evaluation/: leaderboard, curves, comparisons, each architecture."""
    from lineup.evaluation.report import make_report

    text = make_report()
    write_text(REPORT, text)
    megabytes = f"{len(text) / 1e6:.1f} MB"
    print(f"{REPORT.resolve()}  ({megabytes}; open it in any browser, or send it)")


if __name__ == "__main__":
    run(main)
