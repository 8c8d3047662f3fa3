"""A comparison of two sides that were tuned alike, with every measure: the fourth and the fifth primary ones.

    <name>_tuning.jsonl      nine settings a side, seeds 500 to 502, scored on held-out rows of train
    <name>_winners.json      the setting of each side; committed before the comparison
    <name>_comparison.jsonl  the winners on paired seeds from 600 on, then exploratory arms at their settings

The winner of a side has the highest accuracy; of all settings within a standard error of it, the lowest NLL.

Rule, fixed before the first run. A gain or a loss is claimed if the exact p of the paired permutation over
seeds is below .01 and the 95 % interval over seeds and dev rows leaves out 0. It is "no gain" if that
interval lies within ±1 point, else "not decided". Secondary measures have p by Holm. All other arms are
exploratory. All arms of a seed run on one type of processor and in one precision: those of the machine that
begins it.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from config import TrainConfig
from datasets import read_examples, tokenize
from evaluation import model_outputs
from experiments import tables
from experiments.calibration import MEASURES, SECONDARY, measures_of
from experiments.held_out import HELD_OUT, held_out_folder
from experiments.runner import Outcome, Run, finished_model, machine, parse, run_grid
from experiments.study import Study
from experiments.tables import HERE, Line, Question
from support.files import write_text
from tasks import TASKS

SST = TASKS["sst"]
ALL_ROWS = 8_544  # of SST's training file
PRIMARY = {"plain", "SMART"}
TUNING_SEEDS = (500, 501, 502)
SEEDS = tuple(range(600, 620))
EXPLORATORY_SEEDS = SEEDS[:10]
RATES = ("5e-5", "1e-4", "2e-4")  # --lr
SMART = ("--use_smart", "--smart_epsilon", "0.04", "--smart_step_size", "0.04")  # λ_s = μ = 1, the defaults
Setting = dict[str, Any]  # passes, lr


def outcome(run: Run, data_dir: Path, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a line says of a run's last weights on dev, and logits on dev and test, labels on dev.

    With SMART also R_s, its rounding floor and the ascent's gain, as the log has them at the end.
    """
    model, tokenizer, config = finished_model(folder)
    found = {}
    for split in ("dev", "test"):
        examples = read_examples(data_dir / SST.filename(split), SST, labelled=split == "dev")
        dataset = tokenize(examples, SST, tokenizer, config.max_length)
        found[split] = model_outputs(model, dataset, config.batch_size)
        if dataset.labels is not None:
            labels = dataset.labels
    dev: dict[str, Any] = measures_of(found["dev"], labels)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for name in ("smart", "smart_floor", "ascent_gain", "bregman"):
        if values := [line[name] for line in log if name in line]:
            dev[name] = values[-1]
    arrays = {"sst labels": labels.numpy()} | {f"sst {split}": found[split].numpy() for split in found}
    return {"sst": dev}, arrays


class Arm(NamedTuple):
    """An arm of the comparison.

    flags: beside --lr. side: whose winner it takes. cost: factor on its steps. passes: forward passes of a
    step.
    """

    side: str
    flags: tuple[str, ...] = ()
    cost: float = 1.0
    seeds: tuple[int, ...] = EXPLORATORY_SEEDS
    passes: float = 9


@dataclass(frozen=True)
class Tuned:
    """The two questions of a comparison.

    title, given: see `Study`. passes: by side the numbers of passes that are tried. rows: drawn of SST's
    training rows; None for all. wrong: share of wrong training labels while tuning. arms: plain and SMART
    first. more: measures and arrays that a question adds for each model, of (run, data_dir, folder). extra:
    heads of these measures.
    """

    name: str
    title: str
    given: str
    passes: Mapping[str, tuple[int, ...]]
    arms: Mapping[str, Arm]
    rows: int | None = None
    wrong: float = 0.0
    comparison_wrong: tuple[float, ...] = (0.0,)
    more: Outcome = field(default=lambda *_: ({}, {}))
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def judged(self) -> str:
        """The arm that has a verdict: SMART, with the largest share of wrong labels."""
        return self.label("SMART", max(self.comparison_wrong))

    def label(self, arm: str, wrong: float) -> str:
        """An arm's name in the lines."""
        return f"{arm}, {wrong:.0%} wrong" if len(self.comparison_wrong) > 1 else arm

    @property
    def study(self) -> Study:
        """The tables, by the rule above."""
        several = len(self.comparison_wrong) > 1
        return Study(
            self.name,
            self.title,
            self.given,
            self.judged,
            {name: arm.passes for name, arm in self.arms.items()},
            MEASURES | dict(self.extra),
            tuple(self.label("", wrong) for wrong in self.comparison_wrong) if several else ("",),
            SECONDARY,
            "Learning rate of the heads 3e-3.",
        )

    @property
    def winners_file(self) -> Path:
        """The setting of each side."""
        return HERE / f"{self.name}_winners.json"

    def steps(self, passes: float, rows: int) -> int:
        """Steps of so many passes over the rows that are trained on."""
        return round(passes * -(-(self.rows or rows) // TrainConfig().batch_size))

    def tuning_grid(self) -> list[Run]:
        """Nine settings a side."""
        rows = ALL_ROWS - HELD_OUT["sst"]
        return [
            Run(
                f"{side} {passes} passes lr {rate}",
                ("sst",),
                seed,
                (*(SMART if side == "SMART" else ()), "--lr", rate),
                self.steps(passes, rows),
                self.rows,
                self.wrong,
            )
            for seed in TUNING_SEEDS
            for side in self.passes
            for passes in self.passes[side]
            for rate in RATES
        ]

    def comparison_grid(self, winners: Mapping[str, Setting]) -> list[Run]:
        """Plain and SMART seed by seed, then the exploratory arms."""
        grid = []
        for arms in (PRIMARY, set(self.arms) - PRIMARY):
            for seed in SEEDS:
                for name, arm in self.arms.items():
                    if name not in arms or seed not in arm.seeds:
                        continue
                    won = winners[arm.side]
                    steps = self.steps(won["passes"] * arm.cost, ALL_ROWS)
                    flags = (*arm.flags, "--lr", won["lr"])
                    for wrong in self.comparison_wrong:
                        run = Run(self.label(name, wrong), ("sst",), seed, flags, steps, self.rows, wrong)
                        grid.append(run)
        return grid

    def winner(self, lines: Sequence[Line], side: str) -> Setting:
        """Of the settings within a standard error of the best accuracy, the one with the lowest NLL."""
        settings = {}
        for passes in self.passes[side]:
            for rate in RATES:
                found = tables.of_arm(lines, f"{side} {passes} passes lr {rate}")
                settings[passes, rate] = [line["dev"]["sst"] for line in found]
        accuracy = {key: [dev["accuracy"] for dev in devs] for key, devs in settings.items()}
        best = max(accuracy, key=lambda key: statistics.fmean(accuracy[key]))
        error = statistics.stdev(accuracy[best]) / len(accuracy[best]) ** 0.5
        limit = statistics.fmean(accuracy[best]) - error
        near = [key for key in settings if statistics.fmean(accuracy[key]) >= limit]
        passes, rate = min(near, key=lambda key: statistics.fmean(dev["nll"] for dev in settings[key]))
        return {"passes": passes, "lr": rate}

    def program(self, description: str | None) -> int:
        """The command line of a question. Returns the exit status."""
        options = parse(description)
        self.run(options.data_dir, options.work_dir, options.seeds)
        print(self.study.tuning.page(), self.study.comparison.page(), sep="\n\n")
        return 0

    def run(self, data_dir: Path, work_dir: Path, seeds: Sequence[int] | None) -> None:
        """Tune, write the winners, compare. The winners are to be committed before the comparison goes on."""
        held_out = held_out_folder(data_dir, work_dir / "held-out")

        def go(question: Question, grid: list[Run], folder: Path) -> bool:
            here = tables.processor_type(machine())
            elsewhere = {line["seed"] for line in question.lines() if tables.processor_type(line) != here}
            mine = [run for run in grid if run.seed not in elsewhere and (not seeds or run.seed in seeds)]
            run_grid(question, mine, folder, work_dir, self.outcome)
            return {run.name for run in grid} <= {line["name"] for line in question.lines()}

        if not go(self.study.tuning, self.tuning_grid(), held_out):
            return
        lines = self.study.tuning.lines()
        winners = {side: self.winner(lines, side) for side in self.passes}
        text = json.dumps(winners, indent=1) + "\n"
        if not self.winners_file.exists():
            write_text(self.winners_file, text)
            print(f"{self.winners_file} is written: commit it, then run the same command again")
            return
        assert self.winners_file.read_text() == text, "the winners are those of the lines"
        go(self.study.comparison, self.comparison_grid(winners), data_dir)

    def outcome(self, run: Run, data_dir: Path, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """`outcome`, and what the question adds."""
        dev, arrays = outcome(run, data_dir, folder)
        measures, more = self.more(run, data_dir, folder)
        dev["sst"] |= measures
        return dev, arrays | more
