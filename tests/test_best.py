"""The best model: a search that follows from its lines, trials that take as long, the final runs."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from config import parse_arguments
from datasets import SCHEDULES, RunLength
from experiments import best, pages, runner
from experiments.runner import Question
from helpers import SAMPLE
from measured import line_of, quick_look, write_lines
from support.errors import UserError

HOURS = 3600


def searched(scores: list[float]) -> list[dict]:
    """The lines of a search whose trials score so."""
    lines: list[dict] = []
    for score in scores:
        lines.append(line_of(best.next_trial(lines), sst=score, para=score, sts=score))
    return lines


ALL_LOST = [0.5] * len(best.OPTIONS)  # the first has won, because there was nothing before
ALL_WON = [0.5 + place / 100 for place in range(len(best.OPTIONS))]
SMART_WON = [0.6 if option.startswith("SMART") else 0.5 for option in best.OPTIONS]

# ------------------------------------------------------------------------------------------- trials


def test_no_flag_of_a_trial_is_refused():
    """Guards against a search that stops at an option which does not go with one that has won before."""
    changes = [{}, best.MIX, *best.OPTIONS.values()]
    for first, second in itertools.combinations_with_replacement(changes, 2):
        run = best.run_of("x", best.BASE | first | second, best.TRIAL)
        config, _ = parse_arguments([*run.flags, "--tasks", ",".join(run.tasks)])
        assert config.precision == "bf16" and config.tasks == best.TASK_NAMES
    for scores in (ALL_WON, ALL_LOST, SMART_WON):
        for line in searched(scores):
            parse_arguments([*line["flags"], "--tasks", "sst,para,sts"])


def test_runs_of_the_search_have_names_of_their_own():
    """Guards against a trial that counts as run because another has its name."""
    names = {line["name"] for line in searched(ALL_LOST)}
    assert len(names) == len(best.OPTIONS)


def test_every_trial_takes_as_long():
    """Guards against an option that wins because it trains longer. Of 1,200 seconds, by hand: a plain step
    of the three tasks in turn takes (.55 + 1 + .65) / 3; both terms take three times that, R-Drop twice, 16
    rows half. The contrastive loss doubles para."""
    steps = {option: best.steps_for(best.BASE | change, 1200) for option, change in best.OPTIONS.items()}
    assert steps["base"] == steps["learning rate 5e-5"] == 1636
    assert steps["SMART, both terms"] == 545
    assert steps["R-Drop"] == 818 and steps["16 rows a batch"] == 3273
    assert steps["contrastive loss, weight .1"] == 1125


def test_the_final_runs_see_every_task_alike():
    """Guards against a final run that overfits the smallest task: in proportion to rows, of 85,489 sst has
    .100, para .829, sts .071, so a step takes .930 s and 14,400 s see each row 14,400 / .930 x 32 / 85,489
    = 5.8 times. A third of the time, or three times the cost, is a third of that."""
    for arm, passes in zip(best.FINALS, (5.8, 1.93, 1.93), strict=True):
        run = best.final_run(searched(ALL_LOST), arm)
        assert run.steps == pytest.approx(passes * 85_489 / 32, rel=0.01)
        length = RunLength(tuple(best.TRAIN_ROWS.values()), 1, run.steps, seed=0)
        counts = np.bincount([task for (task,) in SCHEDULES[best.MIX["schedule"]](length, 0)])
        assert 32 * counts / length.rows == pytest.approx([passes] * 3, rel=0.08)


def test_the_search_stays_within_its_hours():
    """Guards against a search that costs more than the page says, whatever wins in it."""
    for scores in (ALL_WON, ALL_LOST, SMART_WON):
        lines = searched(scores)
        settings = []
        for place, change in enumerate(best.OPTIONS.values()):
            settings.append(best.walk(lines[:place])[0] | change)
        seconds = [
            line["steps"] * best.seconds_of_a_step(each) for line, each in zip(lines, settings, strict=True)
        ]
        assert max(seconds) < 1.01 * best.TRIAL and sum(seconds) < 4 * HOURS
    assert best.FINAL == 2 * 2 * HOURS  # of two cores


# ------------------------------------------------------------------------------------------- search


def test_the_search_goes_on_from_what_was_better():
    """Guards against a trial on top of a setting that has lost, and a search that forgets what has won."""
    lines = searched([0.5, 0.6, 0.55, 0.6])  # base; 5e-5 wins; 2e-4 and 16 rows do not
    trial = best.next_trial(lines)
    assert trial.arm == "moving average of the weights"
    assert trial.flags == ("--precision", "bf16", "--lr", "5e-5", "--keep", "teacher")
    won, better = best.walk(lines)
    assert won == {"precision": "bf16", "lr": "5e-5"}
    assert list(better.values()) == [True, True, False, False]


def test_the_mean_decides():
    """Guards against a search that looks at one task alone: STS gains less here than SST loses."""
    lines = searched([0.5])
    lines.append(line_of(best.next_trial(lines), sst=0.45, para=0.5, sts=0.54))
    assert best.mean_score(lines[1]) == pytest.approx(0.4966667)
    assert list(best.walk(lines)[1].values()) == [True, False]


def test_a_search_that_is_broken_off_goes_on_with_the_same_trials(tmp_path, monkeypatch):
    """Guards against a search that depends on more than its lines: a trial run twice, or left out."""
    scores = dict(zip(best.OPTIONS, [0.5, 0.6, 0.55, 0.7, 0.6, 0.4, 0.65, 0.8, 0.1, 0.2, 0.9], strict=True))
    asked: list[str] = []
    breaks = {3, 4, 9}  # calls that are interrupted: before any line, and twice in a row

    def run_grid(question, runs, *_):
        asked.append(runs[0].arm)
        if len(asked) in breaks:
            raise KeyboardInterrupt
        score = scores[runs[0].arm]
        write_lines(question, [*question.lines(), line_of(runs[0], sst=score, para=score, sts=score)])

    monkeypatch.setattr(best, "run_grid", run_grid)
    broken, whole = Question("broken", tmp_path), Question("whole", tmp_path)
    for _ in breaks:
        with pytest.raises(KeyboardInterrupt):
            best.search(broken, SAMPLE, tmp_path)
    best.search(broken, SAMPLE, tmp_path)
    assert len(asked) == len(best.OPTIONS) + len(breaks)
    breaks.clear()
    best.search(whole, SAMPLE, tmp_path)
    assert broken.lines() == whole.lines() and [line["arm"] for line in whole.lines()] == list(best.OPTIONS)


def test_a_search_waits_for_its_processor(tmp_path, monkeypatch, capsys):
    """Guards against a search that asks for the same trial for ever, where its seed was begun elsewhere."""
    question = Question("search", tmp_path)
    elsewhere = {"commit": runner.commit(), **runner.machine(), "processor": "abacus"}
    write_lines(question, [line | elsewhere for line in searched([0.5])])
    best.search(question, SAMPLE, tmp_path)
    assert len(question.lines()) == 1 and "1 runs wait" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------- final


def final_lines(scores: dict[str, float], seed: int = 0) -> list[dict]:
    """Lines of final runs after a search whose base has won."""
    lines = searched(ALL_LOST)
    found = [
        line_of(best.final_run(lines, arm), sst=score, para=score, sts=score) for arm, score in scores.items()
    ]
    return [line | {"seed": seed} for line in found]


def test_a_search_ends_and_its_winner_trains_twelve_times_as_long():
    """Guards against a search without an end, and a final run while it goes on."""
    lines = searched(ALL_LOST)
    assert best.next_trial(lines) is None and len(lines) == 11
    run = best.final_run(lines, best.FIRST)
    assert (run.seed, run.train_rows) == (0, None)
    assert run.flags == best.words(best.BASE | best.MIX)
    with pytest.raises(UserError, match="has not ended"):
        best.final_run(lines[:-1], best.FIRST)


@pytest.mark.parametrize(("scores", "best_arm"), [((0.6, 0.7), -1), ((0.7, 0.6), -2), ((0.4, 0.4), -3)])
def test_what_is_best_gets_the_second_seed(scores, best_arm, tmp_path, monkeypatch):
    """Guards against two seeds of a training that was not chosen, or of other settings than were scored."""
    arms = [arm for arm in best.FINALS if arm != best.FIRST]
    question, asked = Question("length", tmp_path), []

    def run_grid(question, runs, *_):
        asked.extend(runs)
        if len(runs) == 2:
            write_lines(question, final_lines(dict(zip(arms, scores, strict=True))))

    monkeypatch.setattr(best, "run_grid", run_grid)
    others = [*searched(ALL_LOST), *final_lines({best.FIRST: 0.55})]
    best.final(question, others, SAMPLE, tmp_path, quick=False)
    *first, second = asked
    assert [(run.arm, run.seed) for run in first] == [(arm, 0) for arm in arms]
    chosen = best.final_run(searched(ALL_LOST), list(best.FINALS)[best_arm])
    assert second == dataclasses.replace(chosen, seed=1)


def test_a_trial_that_is_still_the_best_gets_the_second_seed(tmp_path, monkeypatch):
    """Guards against a recommended training of one seed, and a search that its second seed confuses."""
    question, asked = Question("length", tmp_path), []
    monkeypatch.setattr(best, "run_grid", lambda _, runs, *__: asked.extend(runs))
    write_lines(question, final_lines(dict.fromkeys(best.FINALS, 0.4)))
    lines = searched(ALL_LOST)
    best.final(question, lines, SAMPLE, tmp_path, quick=False)
    assert asked[-1] == dataclasses.replace(best.run_of("base", best.BASE, best.TRIAL), seed=1)
    again = line_of(asked[-1], sst=0.1, para=0.1, sts=0.1)
    questions_of(monkeypatch, tmp_path, lines, [], [again])
    assert "SST 0.300, Quora 0.300, STS 0.300, in 1 minutes of one core (2 of 2 seeds" in best.recommended()
    assert "| base, 2 seeds | `--precision bf16 --lr 1e-4` | 0.300 |" in best.page()


def test_nothing_is_chosen_before_the_last_run_is_in(tmp_path, monkeypatch):
    """Guards against a second seed for the better of those that happened to run on this processor."""
    question, asked = Question("length", tmp_path), []
    monkeypatch.setattr(best, "run_grid", lambda _, runs, *__: asked.extend(run.seed for run in runs))
    write_lines(question, final_lines({"winner, two passes": 0.9}))
    best.final(question, searched(ALL_LOST), SAMPLE, tmp_path, quick=False)
    assert asked == [0, 0]


def test_the_command_trains_what_the_final_runs_train():
    """Guards against a recommended command that fails, or that trains another model than was scored."""
    for scores in (ALL_WON, ALL_LOST, SMART_WON, [0.5, 0.6, 0.7, *[0.5] * 8]):
        lines = searched(scores)
        for run in [*(best.final_run(lines, arm) for arm in best.FINALS), best.run_of("x", best.BASE, 60)]:
            words = best.command_of(line_of(run)).split()
            assert words[:2] == ["python", "multitask_classifier.py"]
            config, _ = parse_arguments(words[2:])
            ours, _ = parse_arguments(["--keep", "student", "--tasks", "sst,para,sts", *run.flags])
            assert config.epochs * config.steps_per_epoch == run.steps and config.epochs == run.epochs
            names = ("tasks", "lr", "schedule", "batch_size", "similarity", "pooling", "task_weights")
            assert all(getattr(config, name) == getattr(ours, name) for name in names)
            assert config.weights("para") == ours.weights("para")
            # without D_Breg there is no teacher, so the best weights are the trained ones
            assert config.keep == ours.keep or (config.keep == "best" and not config.has_teacher)


# ------------------------------------------------------------------------------------------- tables


def test_the_table_marks_what_was_kept_and_the_best():
    """Guards against a table that calls another trial than the last improvement the best."""
    rows = best.table(searched([0.5, 0.6, 0.7, 0.65]), []).splitlines()
    assert rows[2].startswith("| base | `--precision bf16 --lr 1e-4` | 0.500 |") and rows[2].endswith(
        "kept |"
    )
    assert rows[4].startswith("| learning rate 2e-4 | `--lr 2e-4` | 0.700 | 0.700 | 0.700 | 0.700 | 1,636 |")
    assert rows[4].endswith("| **best** |")
    assert rows[5].endswith("| 0.650 | 3,273 | 1 |  |")  # 16 rows
    assert rows[6].count("…") == 6 and rows[13].startswith("| winner | `--schedule proportional` | …")
    ended = best.table(searched(ALL_LOST), final_lines({best.FIRST: 0.6})).splitlines()
    assert ended[2].endswith("| kept |") and ended[13].endswith("| **recommended** |")


def questions_of(monkeypatch, folder, *lines):
    """Put questions with these lines in the place of the committed ones."""
    asked = tuple(Question(name, folder) for name in ("search", "first", "length"))
    for question, kept in zip(asked, lines, strict=False):
        write_lines(question, kept)
    monkeypatch.setattr(best, "questions", lambda: asked)


def test_without_lines_there_is_a_table_and_no_command(tmp_path, monkeypatch):
    """Guards against a page that recommends a command which nothing was run for."""
    assert best.table([], []).endswith("Nothing has been run yet.") and "…" in best.table([], [])
    questions_of(monkeypatch, tmp_path, searched(ALL_LOST[:-1]))
    assert "multitask_classifier.py" not in best.page()
    questions_of(monkeypatch, tmp_path, searched(ALL_LOST))
    assert "```console\n# the course's files" in best.page()
    assert pages.BLOCKS["experiments/README.md"]["best"] and pages.BLOCKS["README.md"]["best"]


def test_the_recommended_command_stands_beside_its_scores(tmp_path, monkeypatch):
    """Guards against a command without the figures that it was chosen for, a mean of the wrong runs, and a
    figure that does not say that dev chose it."""
    second = "winner, two passes"
    lines = [final_lines({second: 0.50}), final_lines({second: 0.52}, seed=1)]
    lines[1][0]["seconds"] = 2 * 3600 - 60.0
    first = final_lines({best.FIRST: 0.4})
    questions_of(monkeypatch, tmp_path, searched([0.45] * 11), first, lines[0])
    assert "SST 0.500, Quora 0.500, STS 0.500, in 1 minutes of one core (1 of 2 seeds;" in best.recommended()
    questions_of(monkeypatch, tmp_path, searched([0.45] * 11), first, lines[0] + lines[1])
    said, _, fence = best.recommended().partition("\n\n")
    assert "SST 0.510, Quora 0.510, STS 0.510, in 60 minutes" in said and "selected: dev chose" in said
    assert max(map(len, fence.splitlines())) <= 110
    command = fence.replace("\\\n", "").splitlines()[2]
    assert command.split() == best.command_of(lines[0][0]).split()
    questions_of(monkeypatch, tmp_path, searched([0.6] * 11), first, lines[0] + lines[1])
    assert "--steps_per_epoch 1636" in best.recommended()  # a trial that is better than the final runs


def test_a_search_has_no_picture(monkeypatch, capsys):
    """Guards against --plot that starts hours of training."""
    monkeypatch.setattr(best, "run_grid", lambda *_: pytest.fail("it trains"))
    monkeypatch.setattr("sys.argv", ["best", "search", "--plot", "--data_dir", str(SAMPLE)])
    assert best.main() == 2 and "has a table only" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["best", "final", "--seeds", "1", "--data_dir", str(SAMPLE)])
    assert best.main() == 2 and "--seeds" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- whole runs


@pytest.mark.slow
def test_the_best_model_from_search_to_predictions(tmp_path, encoder, monkeypatch):
    """Guards against a search that breaks in the middle, and final runs that leave no predictions."""
    monkeypatch.setattr(best, "BASE", best.BASE | {"model_name_or_path": encoder})
    names = ("base", "learning rate 5e-5", "moving average of the weights")
    monkeypatch.setattr(best, "OPTIONS", {name: best.OPTIONS[name] for name in names})
    words = ["best", "--quick", "--data_dir", str(SAMPLE), "--work_dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    assert best.main() == 0
    search, _, length = best.questions(tmp_path / "quick")
    assert [line["arm"] for line in search.lines()] == list(names) and len(length.lines()) >= 2
    for line, task in itertools.product(length.lines(), ("sst", "para", "sts")):
        name = f"{best.file_name(line['arm'])}-{task}-test-output-seed-{line['seed']}.csv"
        assert len((tmp_path / "quick" / "best" / name).read_text().splitlines()) == 51


@pytest.mark.slow
def test_a_trial_and_a_final_run_on_the_course_data(tmp_path, course_data):
    """Guards against a search that fails at the real files, and against predictions for other rows."""
    script = (
        "import sys; from experiments import best;"
        "best.OPTIONS = dict(list(best.OPTIONS.items())[:1]); sys.exit(best.main())"
    )
    said = quick_look(script, course_data, tmp_path)
    # which of the two the second seed goes to, and so the name of its row, is chance after so few steps
    assert re.search(r"\| base(, 2 seeds)? \| `--precision bf16 --lr 1e-4` \| 0\.", said)
    assert re.search(r"\| winner, two passes(, 2 seeds)? \|", said)
    for task, rows in {"sst": 2210, "para": 3000, "sts": 1725}.items():
        text = (tmp_path / "quick" / "best" / f"winner-two-passes-{task}-test-output-seed-0.csv").read_text(
            "utf-8"
        )
        assert len(text.splitlines()) == rows + 1
