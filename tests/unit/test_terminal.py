"""What a person sees in the terminal."""

import pytest

from lineup.cli import duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (12 * 60 + 20, "12 min"),
        (5400, "1.5 h"),
        (36_000, "10.0 h"),
    ],
)
def test_a_length_of_time_is_rounded_to_what_a_person_plans_with(seconds, words):
    assert duration(seconds) == words
