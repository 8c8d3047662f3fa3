"""The page of a run, `report.html`, made from the files in the run's folder alone.

    python report.py runs/finetune

    1. read_run       results.json, last/, metrics.jsonl, predictions/*-dev-rows.jsonl -> Run
    2. tables         Run -> scores beside a constant's, confusions, worst mistakes, SMART, time
    3. pictures       metrics.jsonl, dev rows -> inline SVG by matplotlib
    4. write_report   tables and pictures -> support/report.html (a jinja2 template) -> <folder>/report.html

The page needs no script, no network and no torch. The same files give the same page, byte for byte.
"""

import argparse
import io
import math
import re
import shlex
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
import matplotlib.style
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from support.errors import UserError, exit_status, one_line
from support.files import parse_json, read_bytes, read_json, write_text
from support.screen import duration

TEMPLATES = Path(__file__).resolve().parent / "support"
WORST = 10  # mistakes of a task that are shown
TERM_NAMES = {"task": "task loss", "smart": "R_s (smart)", "bregman": "D_Breg (bregman)", "rdrop": "R-Drop"}
Record = dict[str, Any]

# -------------------------------------------------------------------------------------------- files


class Row(NamedTuple):
    """A dev row and its prediction. Classes are names, scores are numbers.

    probabilities: by class; empty for scores, and for a task that has none.
    """

    id: str
    texts: list[str]
    label: str | float
    prediction: str | float
    probabilities: Mapping[str, float] = MappingProxyType({})

    @property
    def loss(self) -> float:
        """Cross entropy of a class (0 without probabilities), squared error of a score."""
        if isinstance(self.label, str):
            probability = self.probabilities.get(self.label, 1.0)
            return -math.log(probability) if probability else math.inf
        return (float(self.prediction) - self.label) ** 2


class Run(NamedTuple):
    """What the files of a run say.

    ended: whether all of its steps are done and tested. results: `results.json`; of a run that has not ended,
    the same about its best epoch so far. records: `metrics.jsonl`, by kind. rows: dev rows by task.
    """

    ended: bool
    results: Record
    records: dict[str, list[Record]]
    rows: dict[str, list[Row]]

    @property
    def tasks(self) -> list[str]:
        """The tasks that have training records."""
        return [kind.removeprefix("train/") for kind in self.records if kind.startswith("train/")]


def read_run(folder: Path) -> Run:
    """The run in a folder. Raises UserError if there is none, or that names the damaged file."""
    names = ("results.json", "last/run.json", "last/progress.json")
    results, record, progress = (
        read_json(folder / name) if (folder / name).exists() else {} for name in names
    )
    if not results and not record:
        raise UserError(f"{folder}: holds no run, neither a results.json nor a checkpoint in last/")
    # results.json may be that of fewer epochs, before the run was resumed
    ended = bool(results) and progress.get("step") in (None, results.get("steps"))
    if not ended:
        times = {"train_seconds": progress["seconds"], "save_seconds": progress["save_seconds"]}
        results = progress["best"] | times | {"steps": progress["step"]}
    records = defaultdict(list)
    for line in json_lines(folder / "metrics.jsonl"):
        records[line["kind"]].append(line)
    rows = {}
    for task in results.get("dev", {}):
        lines = json_lines(folder / "predictions" / f"{task}-dev-rows.jsonl")
        rows[task] = [Row(**line) for line in lines]
    return Run(ended, record | results, dict(records), rows)


def json_lines(path: Path) -> Iterator[Record]:
    """The objects of a file of JSON lines; none if there is no file. Raises UserError with file and line."""
    data = read_bytes(path) if path.exists() else b""
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else [], start=1):
        yield parse_json(f"{path}:{number}", line)


# ------------------------------------------------------------------------------------------- tables


def constant_scores(rows: Sequence[Row]) -> tuple[str, dict[str, str]]:
    """The best constant prediction in words, and its scores by metric, as text.

    Of classes it is the most frequent label of these rows, of scores their mean.
    """
    labels = [row.label for row in rows]
    if not labels:
        return "", {}
    if isinstance(labels[0], str):
        (name, count), *_ = Counter(labels).most_common(1)
        share = count / len(labels)
        # F1 of this class is 2 · share · 1 / (share + 1), that of every other class 0
        macro_f1 = 2 * share / (1 + share) / len(set(labels))
        return f"always “{name}”", {"accuracy": f"{share:.3f}", "macro_f1": f"{macro_f1:.3f}"}
    values = [float(label) for label in labels]
    error = statistics.pvariance(values)
    return f"always {statistics.fmean(values):.2f}, the mean", {"mean squared error": f"{error:.3f}"}


def score_table(run: Run, task: str) -> dict[str, Any]:
    """The scores of a task, a line a metric: the model's, the constant's, the untrained encoder's cosine."""
    rows = run.rows[task]
    scores = dict(run.results["dev"][task])
    trained = scores.pop("trained", True)
    main_metric = next(iter(scores))
    words, constant = constant_scores(rows)
    if "mean squared error" in constant:
        scores["mean squared error"] = statistics.fmean(row.loss for row in rows)
    lines = []
    for metric, value in scores.items():
        cosine = run.results.get("untrained_cosine", {}).get(task) if metric == main_metric else None
        shown = "" if cosine is None else f"{cosine:.3f}"
        lines.append((metric.replace("_", " "), f"{value:.3f}", constant.get(metric, "–"), shown))
    return {"trained": trained, "rows": len(rows), "constant": words, "lines": lines}


def confusion(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """How many rows of each true class were given which class: counts[true][predicted]."""
    found = {str(name) for row in rows for name in (row.label, row.prediction)}
    names = list(dict.fromkeys([*rows[0].probabilities, *sorted(found)]))
    pairs = Counter((row.label, row.prediction) for row in rows)
    return {true: {said: pairs[true, said] for said in names} for true in names}


def worst_mistakes(rows: Sequence[Row]) -> list[Row]:
    """The rows with the highest loss among those that are wrong, the worst first."""
    wrong = [row for row in rows if row.prediction != row.label]
    return sorted(wrong, key=lambda row: -row.loss)[:WORST]


def cost_rows(run: Run) -> list[tuple[str, str]]:
    """Time and memory, by what they were spent on."""
    results = run.results
    table = []
    for name, words in {"train_seconds": "training steps", "save_seconds": "writing checkpoints"}.items():
        if results.get(name):
            table.append((words, duration(results[name])))
    if "examples_per_second" in results:
        table.append(("speed", f"{results['examples_per_second']:,.1f} rows a second"))
    for task in run.tasks:
        names = ("ms_per_step", "tokens_per_second")
        pace, tokens = (statistics.median(r[name] for r in run.records[f"train/{task}"]) for name in names)
        table.append((f"a step on {task}", f"{pace:,.0f} ms, {tokens:,.0f} tokens a second (medians)"))
    peaks = {"peak_memory_gib": "peak memory", "peak_gpu_memory_gib": "peak memory of the GPU"}
    return table + [(words, f"{results[name]:.2f} GiB") for name, words in peaks.items() if name in results]


def facts(run: Run) -> list[tuple[str, str]]:
    """What else decides the numbers."""
    results, config = run.results, run.results["config"]
    return [
        ("option", config["option"]),
        ("encoder", config["checkpoint"] or config["model_name_or_path"]),
        ("trained tasks", ", ".join(results["trained_tasks"])),
        ("data", results["data"]),
        ("precision", ", ".join(filter(None, [config["precision"], results.get("precision_reason")]))),
        ("seed", str(config["seed"])),
        *results.get("versions", {}).items(),
    ]


# ----------------------------------------------------------------------------------------- pictures

# The page has colours of its own, in light and in dark; those of matplotlib are replaced in the SVG. Blue,
# vermillion and green are Okabe and Ito's, made for colour-blind readers.
INK = "#0a0b0c"
BLUE, VERMILLION, GREEN = "#0072b2", "#d55e00", "#009e73"
PAGE_COLOURS = {INK: "currentColor", BLUE: "var(--blue)", VERMILLION: "var(--orange)", GREEN: "var(--green)"}
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
STYLE = dict.fromkeys((*INKED, "grid.color"), INK) | {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",  # the same picture gets the same ids
    "text.parse_math": False,
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "lines.linewidth": 1.4,
    "lines.markersize": 2.5,
    "legend.frameon": False,
}


def picture(title: str, draw: Callable[[Axes], None]) -> Markup:
    """What `draw` draws, as SVG for the page: 230 by 150 points, no background."""
    with matplotlib.style.context(["default", STYLE]):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(3.2, 2.1))
        axes = figure.add_axes((0.16, 0.2, 0.8, 0.66))
        draw(axes)
        axes.set_title(title, loc="right")  # on the left matplotlib writes the power of ten
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # matplotlib numbers its groups in every picture alike, and an id must be unique on the page
    svg = re.sub(r' (?:id="[a-zA-Z0-9.]+_\d+"|xmlns(?::xlink)?="[^"]*"|(?<=pt" )height="[^"]*")', "", svg)
    for colour, replacement in PAGE_COLOURS.items():
        svg = svg.replace(colour, replacement)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{Markup.escape(title)}" ', 1))


def line_plot(title: str, lines: Mapping[str, list[tuple[int, float]]], log_scale: bool = False) -> Markup:
    """Lines over steps, by name: their points (step, value). They differ in colour and in dashes."""

    def draw(axes: Axes) -> None:
        styles = zip(lines.items(), (BLUE, VERMILLION, GREEN), ("-", "--", ":"), strict=False)
        for (name, points), colour, dashes in styles:
            marker = "o" if len(points) < 30 else ""
            axes.plot(*zip(*points, strict=True), dashes, color=colour, label=name, marker=marker)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if log_scale and all(value > 0 for points in lines.values() for _, value in points):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.ticklabel_format(axis="y", scilimits=(-2, 4))
        if len(lines) > 1:
            axes.legend()

    return picture(title, draw)


def curves(run: Run) -> dict[str, list[Markup]]:
    """Plots of each task: its main metric on dev, the terms of its loss, R_s before and after the ascent."""

    def points(kind: str, name: str) -> list[tuple[int, float]]:
        return [(record["step"], record[name]) for record in run.records.get(kind, []) if name in record]

    weights = [name for name in run.results["config"] if name.endswith("_weight")]
    plots: dict[str, list[Markup]] = {"dev": [], "loss": [], "smart": []}
    for task, scores in run.results.get("dev", {}).items():
        metric = next(iter(scores))
        of_roles = {"student": points(f"dev/{task}", metric), "teacher": points(f"teacher/{task}", metric)}
        if lines := {role: found for role, found in of_roles.items() if found}:
            plots["dev"].append(line_plot(f"{task}: {metric.replace('_', ' ')}", lines))
    for task in run.tasks:
        kind = f"train/{task}"
        for term in ["task", *(name.removesuffix("_weight") for name in weights)]:
            if found := points(kind, term):
                plots["loss"].append(line_plot(f"{task}: {TERM_NAMES.get(term, term)}", {term: found}))
        if after := points(kind, "ascent_divergence"):
            lines = {"after the ascent": after, "before": points(kind, "random_divergence")}
            plots["smart"].append(line_plot(f"{task}: R_s", lines, log_scale=True))
    return plots


def scatter_plot(task: str, rows: Sequence[Row]) -> Markup:
    """Predicted against true scores, with the line on which they are equal."""

    def draw(axes: Axes) -> None:
        ends = [min(row.label for row in rows), max(row.label for row in rows)]
        axes.plot(ends, ends, "--", color=VERMILLION, linewidth=1)
        shown = rows[:: 1 + len(rows) // 2000]  # more points would only make the page large
        x, y = [row.label for row in shown], [row.prediction for row in shown]
        axes.plot(x, y, "o", color=BLUE, alpha=0.6, markeredgewidth=0, markersize=3.5)
        axes.set(xlabel="true", ylabel="predicted")

    return picture(f"{task}: predicted against true", draw)


# --------------------------------------------------------------------------------------------- page


def page(run: Run) -> str:
    """The page as HTML. Everything that the run wrote is escaped."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    classes = {task: rows for task, rows in run.rows.items() if rows and isinstance(rows[0].label, str)}
    scores = {task: rows for task, rows in run.rows.items() if rows and task not in classes}
    measured = {
        task: [record for record in run.records[f"train/{task}"] if "ascent_divergence" in record]
        for task in run.tasks
    }
    config = run.results["config"]
    resume = ["python", "multitask_classifier.py", "--resume", "--output_dir", config["output_dir"]]
    return environment.get_template("report.html").render(
        run=run,
        results=run.results,
        config=config,
        resume_command=shlex.join(resume),
        score_tables={task: score_table(run, task) for task in run.rows},
        confusions={task: confusion(rows) for task, rows in classes.items()},
        scatter_plots=[scatter_plot(task, rows) for task, rows in scores.items()],
        mistakes={task: worst_mistakes(rows) for task, rows in run.rows.items()},
        smart={task: records[-1] for task, records in measured.items() if records},
        cost_rows=cost_rows(run),
        facts=facts(run),
        curves=curves(run),
    )


def write_report(folder: Path) -> Path:
    """Make `folder`/report.html, whole or not at all, and return its path.

    Raises UserError if the folder holds no run, if a file of it is damaged, or if the page can't be written.
    """
    try:
        html = page(read_run(folder))
    except UserError:
        raise
    except Exception as error:  # a damaged file can hold anything in the place of a number
        problem = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{folder}: its files are not those of a run ({problem})") from None
    path = folder / "report.html"
    write_text(path, html)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 for a user's mistake (one line on stderr)."""
    parser = argparse.ArgumentParser(description="Make report.html from the files in a run's folder.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run's --output_dir: runs/finetune")
    folder = parser.parse_args(arguments).folder

    def program() -> int:
        print(write_report(folder))
        return 0

    return exit_status("report.py", program)


if __name__ == "__main__":
    sys.exit(main())
