"""Breadth: a grid over sizes and arms, gains over plain, the picture."""

from collections import Counter

import numpy as np
import pytest
from matplotlib.image import imread
from training import forward_passes

from config import TrainConfig, parse_arguments
from experiments import breadth, runner, study
from experiments.runner import Question, Run
from helpers import SAMPLE
from measured import line_of, quick_look, write_lines
from support.errors import UserError

SMALL, STS = breadth.SIZES[:2]


def test_no_flag_of_the_grid_is_refused():
    """Guards against a grid that stops after hours at a flag which is gone."""
    for run in breadth.GRID:
        config, _ = parse_arguments([*run.flags, "--tasks", ",".join(run.tasks)])
        assert config.precision == "bf16" and config.tasks == run.tasks


def test_runs_have_names_of_their_own():
    """Guards against a size whose run counts as that of another size: 5 sizes, 5 seeds, 7 arms."""
    assert len({run.name for run in breadth.GRID}) == len(breadth.GRID) == 175
    quick = [run.quick() for run in breadth.GRID]  # there all sizes draw 64 rows
    assert len({run.name for run in quick}) == 175


def test_the_cheapest_come_first_and_seeds_are_finished():
    """Guards against a grid that is broken off with arms of which none has a partner."""
    costs = [size.steps * (size.rows or 8544) for size in breadth.SIZES]
    assert costs == sorted(costs)
    order = [(run.tasks[0], run.train_rows, run.seed) for run in breadth.GRID]
    assert list(dict.fromkeys(order)) == [place for place, count in Counter(order).items() if count == 7]
    assert order[::7] == list(dict.fromkeys(order))  # the seven arms of a seed are neighbours


def test_the_steps_follow_the_rule():
    """Guards against a size that trains for longer than its docstring says."""
    for size in breadth.SIZES:
        passes = {None: 2, 250: 12, 1000: 3, 4000: 3}[size.rows]
        assert size.steps == passes * -(-(size.rows or 8544) // 32)


def test_equal_passes_are_equal():
    """Guards against a rival that trains for less than what both terms cost, by hand: clean pass 3, noise
    and one ascent 5, teacher 1."""
    plain, both = (forward_passes(TrainConfig(use_smart=use), "sst") for use in (False, True))
    assert (plain, both) == (3, 9) and breadth.TIMES * plain == both
    for size in breadth.SIZES:
        runs = [breadth.run_of(arm, size, 400) for arm in (breadth.EQUAL, "both terms")]
        costs = [study.passes(line_of(run)) for run in runs]
        assert costs == [size.steps * 9] * 2


def test_the_arms_are_what_their_names_say():
    """Guards against R3F with an ascent, R_s beside D_Breg, and "both terms" that keeps the teacher."""
    configs = {
        arm: parse_arguments(["--keep", "student", *flags, "--tasks", "sst"])[0]
        for arm, flags in breadth.ARMS.items()
    }
    assert {arm: set(config.weights("sst")) for arm, config in configs.items()} == {
        "plain": set(),
        breadth.EQUAL: set(),
        "R3F": {"smart"},
        "R-Drop": {"rdrop"},
        "FreeLB": {"smart"},
        "R_s alone": {"smart"},
        "both terms": {"smart", "bregman"},
    }
    assert {config.keep for config in configs.values()} == {"student"}
    assert [arm for arm, config in configs.items() if config.smart_steps == 0] == ["R3F"]
    assert configs["R3F"].smart_noise_var == pytest.approx(configs["R3F"].smart_epsilon ** 2)
    assert [arm for arm, config in configs.items() if config.adversary == "freelb"] == ["FreeLB"]


def both_line(size, seed, student, teacher):
    """A line of both terms: the scores of its student and of its teacher."""
    line = line_of(breadth.run_of("both terms", size, seed), **{size.task: student})
    scores = line["dev"][size.task]
    scores["teacher"] = dict.fromkeys(scores, teacher)
    return line


def test_the_table_by_hand(tmp_path):
    """Guards against a gain over plain with other rows, another task or another seed: .02 and .04 are 3
    points, the interval of two pairs is 12.7062 of their standard error, .01, and seed 402 has no plain. The
    teacher, a row of its own, is a point better than the student."""
    question = Question("breadth", tmp_path)
    lines = []
    for seed, (plain, both) in zip((400, 401), ((0.40, 0.42), (0.30, 0.34)), strict=True):
        lines += [line_of(breadth.run_of("plain", SMALL, seed), sst=plain)]
        lines += [both_line(SMALL, seed, both, both + 0.01)]
    lines += [both_line(SMALL, 402, 0.9, 0.9)]
    lines += [line_of(breadth.run_of("plain", STS, 400), sts=0.9)]
    lines += [line_of(breadth.run_of("R-Drop", STS, 400), sts=0.8)]
    write_lines(question, lines)
    rows = breadth.table(question).splitlines()
    assert rows[2] == "| sst, 250 rows | plain | 2 | 0.3500 |  | 1 |"
    assert rows[3] == "| sst, 250 rows | both terms | 2 | 0.3800 | +3.00 (-9.71 to +15.71) | 3 |"
    assert (
        rows[4] == "| sst, 250 rows | both terms, teacher kept | 2 | 0.3900 | +4.00 (-8.71 to +16.71) | 3 |"
    )
    assert rows[5] == "| sts, 250 rows | plain | 1 | 0.9000 |  | 1 |"
    assert rows[6] == "| sts, 250 rows | R-Drop | 1 | 0.8000 |  | 2 |"
    assert rows[7] == "| sts, 1000 rows | … | 0 | … | … | … |"


def test_the_table_without_lines(tmp_path):
    """Guards against a page that can't be made before the first run."""
    text = breadth.table(Question("none", tmp_path))
    assert text.count("| … | 0 |") == 5 and text.endswith("Nothing has been run yet.")


def test_the_teacher_of_both_terms_is_the_one_that_a_run_would_keep(tmp_path, encoder):
    """Guards against a teacher that is the student again: a run with `--keep teacher` has its scores."""
    flags = ("--model_name_or_path", encoder, "--precision", "fp32", "--lr", "1e-2")
    both = (*flags, "--use_smart", "--bregman_beta", "0.5")
    arms = {"plain": flags, "both": both, "kept": (*both, "--keep", "teacher")}
    question = Question("q", tmp_path, breadth.outcome)
    grid = [Run(arm, ("sst",), 7, flags, steps=4, train_rows=20) for arm, flags in arms.items()]
    runner.run_grid(question, grid, SAMPLE, tmp_path / "work")
    plain, both_terms, kept = (line["dev"]["sst"] for line in question.lines())
    teacher = both_terms.pop("teacher")
    assert teacher.items() <= kept.items() and teacher["loss"] != both_terms["loss"]
    assert "teacher" not in plain
    with np.load(question.predictions(grid[1])) as ours, np.load(question.predictions(grid[2])) as theirs:
        assert np.array_equal(ours["sst teacher"], theirs["sst"])


def test_the_picture_has_a_panel_for_each_size(tmp_path, monkeypatch):
    """Guards against a size in another's place, an arm that is in no legend, and one that changes its look:
    sst above, sts below, and R-Drop is in the last size alone."""
    question = Question("breadth", tmp_path)
    with pytest.raises(UserError, match="nothing to draw"):
        breadth.plot(question)
    last = breadth.SIZES[-1]
    lines = []
    for seed in (400, 401):
        score = 0.4 + seed / 1e4
        for size, arms in ((SMALL, ("plain",)), (last, ("plain", "R-Drop"))):
            lines += [line_of(breadth.run_of(arm, size, seed), **{size.task: score}) for arm in arms]
            lines.append(both_line(size, seed, score, score))
    write_lines(question, lines)
    figures = []
    save = breadth.pictures.save

    def kept(name, draw, *rest, **more):
        def draw_and_keep(figure, colours):
            draw(figure, colours)
            figures.append(figure)

        return save(name, draw_and_keep, *rest, **more)

    monkeypatch.setattr(breadth.pictures, "save", kept)
    assert [imread(path).shape[1] for path in breadth.plot(question)] == [800, 800]
    panels = figures[0].axes
    assert [panel.get_title() for panel in panels] == [
        "sst, 250 rows", "sst, 4000 rows", "sst, all rows", "sts, 250 rows", "sts, 1000 rows", "",
    ]  # fmt: skip
    assert [text.get_text() for text in panels[5].get_legend().get_texts()] == [
        "both terms",
        breadth.KEPT,
        "R-Drop",
    ]
    looks = [panel.get_legend_handles_labels() for panel in (panels[0], panels[2])]
    first, last_one = (dict(zip(names, handles, strict=True))["both terms"] for handles, names in looks)
    assert first.lines[0].get_color() == last_one.lines[0].get_color()


def test_another_processor_takes_the_sizes_that_were_not_begun(tmp_path, monkeypatch):
    """Guards against a grid that a change of machine ends: 250 rows wait, 4,000 rows are never compared
    with them."""
    question = Question("breadth", tmp_path)
    elsewhere = {"commit": runner.commit(), **runner.machine(), "processor": "abacus"}
    write_lines(question, [line_of(breadth.run_of("plain", SMALL, 400)) | elsewhere])
    done = []
    monkeypatch.setattr(runner, "run_one", lambda _, run, *__: done.append(run) or line_of(run))
    runner.run_grid(question, [run for run in breadth.GRID if run.seed == 400], tmp_path, tmp_path)
    assert len(done) == 4 * 7 and not any(run.tasks == ("sst",) and run.train_rows == 250 for run in done)


@pytest.mark.slow
def test_a_part_of_the_grid_on_the_course_data(tmp_path, course_data):
    """Guards against arms that fail at the real files: plain, and both terms with the teacher's scores."""
    script = (
        "import sys; from experiments import breadth as b;"
        "grid = [b.run_of(arm, b.SIZES[0], 400) for arm in ('plain', 'both terms')];"
        "sys.exit(b.main_of(b.QUESTION, grid, b.table, b.plot))"
    )
    said = quick_look(script, course_data, tmp_path)
    assert "| sst, 250 rows | both terms, teacher kept | 1 | 0." in said
