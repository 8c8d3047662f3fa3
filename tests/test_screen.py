"""What a run shows: every line fits 100 columns and says what it should."""

import pytest

from support.screen import cut, duration, epoch_table, scores_table, step_line, table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (61, "1:01 min"), (3599.9, "59:59 min"),
     (3600, "1:00 h"), (7384, "2:03 h"), (360000, "100:00 h")],
)  # fmt: skip
def test_durations(seconds, text):
    """Guards against 60 s or 1:60 min at the edges."""
    assert duration(seconds) == text


def test_a_steps_line_fits_100_columns():
    """Guards against lines that wrap and can't be scanned."""
    line = step_line(1250, 2403, "sst", 1.23456, {"smart": 0.01234, "bregman": 1e-5}, 754)
    assert line == "step 1250/2403  sst     loss 1.2346  smart +0.0123  bregman +1e-05  (12:34 min left)"
    long = step_line(9_999_999, 10_000_000, "cfimdb", 1e8, {f"term{i}": 1e-9 for i in range(9)}, 1e9)
    assert len(long) == 100 and long.endswith("…")
    assert cut("x" * 100) == "x" * 100


def test_the_table_of_an_epoch():
    """Guards against a change of the wrong sign or role, and a star at an epoch that is not the best."""
    now = {"student": {"sst": 0.5, "mean": 0.6}, "teacher": {"sst": 0.4, "mean": 0.7}}
    before = {"student": {"sst": 0.45, "mean": 0.65}}
    lines = epoch_table("dev after epoch 2/3", now, before, "teacher").splitlines()
    assert [line.split() for line in lines] == [
        ["dev", "after", "epoch", "2/3", "student", "change", "teacher", "change"],
        ["-" * 19, "-" * 7, "-" * 6, "-" * 7, "-" * 6],
        ["sst", "0.500", "+0.050", "0.400"],
        ["mean", "0.600", "-0.050", "0.700*"],
    ]
    assert "*" not in epoch_table("dev", now, before, None)


def test_the_table_of_scores():
    """Guards against an untrained head's score that passes for a result."""
    scores = {
        "sst": {"accuracy": 0.5, "macro_f1": 0.25},
        "sts": {"pearson": 0.8, "spearman": 0.7, "trained": False},
    }
    lines = scores_table(scores).splitlines()
    assert lines[2].split() == ["sst", "accuracy", "0.500", "macro_f1", "0.250"]
    assert lines[3].split() == ["sts", "(not", "trained)", "pearson", "0.800", "spearman", "0.700"]
    assert table([["a", "b"], ["long", "1"]]) == "a     b\n----  -\nlong  1"
