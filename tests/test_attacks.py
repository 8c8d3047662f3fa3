"""The table of attacks: counted right, and made from the committed outcomes."""

import json

import attacks

OUTPUTS = {
    "1 failed, 40 passed, 2 errors in 3.21s": (43, 40),
    "12 passed in 9.10s\n3500 inputs held, 2 inputs did not\n": (3502, 3500),
    "kill 19: left last: equal\n19 of 20 ended bit for bit like the uninterrupted run\n": (20, 19),
    "2 of 41 runs could not resume correctly\n| **HARD_FAIL** | 2 | raised |\n| **PASS** | 39 | ok |": (
        41,
        39,
    ),
    "Traceback (most recent call last)": (0, 0),
}


def test_outputs_are_counted():
    """Guards against a failed attack that is counted as one that held, or is not counted at all."""
    assert {text: attacks.count(text) for text in OUTPUTS} == OUTPUTS


def test_the_table_is_of_the_committed_outcomes():
    """Guards against figures that nobody measured."""
    outcomes = json.loads(attacks.OUTPUT.read_text())
    assert (
        attacks.README.read_text() == attacks.updated(outcomes) and outcomes.keys() <= attacks.ATTACKS.keys()
    )
    assert all(got["held"] == got["tried"] > 0 for got in outcomes.values())
