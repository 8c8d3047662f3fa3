"""Breadth: a grid over sizes and arms, gains over plain, the picture."""

from collections import Counter

import pytest
from matplotlib.image import imread

from config import TrainConfig, parse_arguments
from experiments import breadth, runner, study
from experiments.runner import Question
from measured import line_of, quick_look, write_lines
from support.errors import UserError
from training import forward_passes

SMALL, STS = breadth.SIZES[:2]


def test_no_flag_of_the_grid_is_refused():
    """Guards against a grid that stops after hours at a flag which is gone."""
    for run in breadth.GRID:
        config, _ = parse_arguments([*run.flags, "--tasks", ",".join(run.tasks)])
        assert config.precision == "bf16" and config.tasks == run.tasks


def test_runs_have_names_of_their_own():
    """Guards against a size whose run counts as that of another size: 5 sizes, 5 seeds, 8 arms."""
    assert len({run.name for run in breadth.GRID}) == len(breadth.GRID) == 200
    quick = [run.quick() for run in breadth.GRID]  # there all sizes draw 64 rows
    assert len({run.name for run in quick}) == 200


def test_the_cheapest_come_first_and_seeds_are_finished():
    """Guards against a grid that is broken off with arms of which none has a partner."""
    costs = [size.steps * (size.rows or 8544) for size in breadth.SIZES]
    assert costs == sorted(costs)
    order = [(run.tasks[0], run.train_rows, run.seed) for run in breadth.GRID]
    assert list(dict.fromkeys(order)) == [place for place, count in Counter(order).items() if count == 8]
    assert order[::8] == list(dict.fromkeys(order))  # the eight arms of a seed are neighbours


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
    """Guards against R3F with an ascent, R_s beside D_Breg, and a teacher that is not kept."""
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
        "both terms, teacher kept": {"smart", "bregman"},
    }
    assert [arm for arm, config in configs.items() if config.keep == "teacher"] == [
        "both terms, teacher kept"
    ]
    assert [arm for arm, config in configs.items() if config.smart_steps == 0] == ["R3F"]
    assert configs["R3F"].smart_noise_var == pytest.approx(configs["R3F"].smart_epsilon ** 2)
    assert [arm for arm, config in configs.items() if config.adversary == "freelb"] == ["FreeLB"]


def test_the_table_by_hand(tmp_path):
    """Guards against a gain over plain with other rows, another task or another seed: .02 and .04 are 3
    points, the interval of two pairs is 12.7062 of their standard error, .01, and seed 402 has no plain."""
    question = Question("breadth", tmp_path)
    lines = []
    for seed, (plain, both) in zip((400, 401), ((0.40, 0.42), (0.30, 0.34)), strict=True):
        lines += [line_of(breadth.run_of("plain", SMALL, seed), sst=plain)]
        lines += [line_of(breadth.run_of("both terms", SMALL, seed), sst=both)]
    lines += [line_of(breadth.run_of("both terms", SMALL, 402), sst=0.9)]
    lines += [line_of(breadth.run_of("plain", STS, 400), sts=0.9)]
    lines += [line_of(breadth.run_of("R-Drop", STS, 400), sts=0.8)]
    write_lines(question, lines)
    rows = breadth.table(question).splitlines()
    assert rows[2] == "| sst, 250 rows | plain | 2 | 0.3500 |  | 1 |"
    assert rows[3] == "| sst, 250 rows | both terms | 2 | 0.3800 | +3.00 (-9.71 to +15.71) | 3 |"
    assert rows[4] == "| sts, 250 rows | plain | 1 | 0.9000 |  | 1 |"
    assert rows[5] == "| sts, 250 rows | R-Drop | 1 | 0.8000 |  | 2 |"
    assert rows[6] == "| sts, 1000 rows | … | 0 | … | … | … |"


def test_the_table_without_lines(tmp_path):
    """Guards against a page that can't be made before the first run."""
    text = breadth.table(Question("none", tmp_path))
    assert text.count("| … | 0 |") == 5 and text.endswith("Nothing has been run yet.")


def test_the_picture_has_a_panel_for_each_size(tmp_path, monkeypatch):
    """Guards against a size in another's place, an arm that is in no legend, and one that changes its look:
    sst above, sts below, and R-Drop is in the last size alone."""
    question = Question("breadth", tmp_path)
    with pytest.raises(UserError, match="nothing to draw"):
        breadth.plot(question)
    last = breadth.SIZES[-1]
    lines = [
        line_of(breadth.run_of(arm, size, seed), **{size.task: 0.4 + seed / 1e4})
        for size, arms in ((SMALL, ("plain", "both terms")), (last, ("plain", "both terms", "R-Drop")))
        for arm in arms
        for seed in (400, 401)
    ]
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
    assert [text.get_text() for text in panels[5].get_legend().get_texts()] == ["both terms", "R-Drop"]
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
    assert len(done) == 4 * 8 and not any(run.tasks == ("sst",) and run.train_rows == 250 for run in done)


@pytest.mark.slow
def test_a_part_of_the_grid_on_the_course_data(tmp_path, course_data):
    """Guards against arms that fail at the real files: plain and the kept teacher, the smallest size."""
    script = (
        "import sys; from experiments import breadth as b;"
        "grid = [b.run_of(arm, b.SIZES[0], 400) for arm in ('plain', 'both terms, teacher kept')];"
        "sys.exit(b.main_of(b.QUESTION, grid, b.table, b.plot))"
    )
    said = quick_look(script, course_data, tmp_path)
    assert "| sst, 250 rows | both terms, teacher kept | 1 | 0." in said
