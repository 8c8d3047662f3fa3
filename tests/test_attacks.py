"""The table of attacks: counted right, and made from the committed outcomes."""

import json

import attacks
from attacks import ATTACKS, count

PYTEST = "1 failed, 40 passed, 2 errors in 3.21s"
FUZZ = "12 passed in 9.10s\n3500 inputs held, 2 inputs did not\n"
KILLS = "kill 19: left last: equal\n19 of 20 ended bit for bit like the uninterrupted run\n"
CHAOS = "41 of 41\nAll 41 runs resumed acceptably after the job\n| **PASS** | 41 | the resume matched |\n"
BROKEN = (
    "2 of 41 runs could not resume correctly\n| **HARD_FAIL** | 2 | raised |\n| **PASS** | 39 | matched |\n"
)


def test_outputs_are_counted():
    """Guards against a failed attack that is counted as one that held, or is not counted at all."""
    printed = {"saving": PYTEST, "fuzzed files": FUZZ, "kills": KILLS, "chaos": CHAOS}
    expected = {"saving": (43, 40), "fuzzed files": (3502, 3500), "kills": (20, 19), "chaos": (41, 41)}
    for name, text in printed.items():
        assert (count(ATTACKS[name].tried, text), count(ATTACKS[name].held, text)) == expected[name]
    assert (count(ATTACKS["chaos"].tried, BROKEN), count(ATTACKS["chaos"].held, BROKEN)) == (41, 39)


def test_the_table_is_of_the_committed_outcomes():
    """Guards against figures that nobody measured."""
    outcomes = json.loads(attacks.OUTPUT.read_text())
    assert attacks.README.read_text() == attacks.updated(outcomes)
    assert all(got["held"] == got["tried"] > 0 for got in outcomes.values())
