"""The page of a run, `report.html`, made from the files in the run's folder alone.

    python run_report.py runs/finetune

    1. read_run     results.json, last/, metrics.jsonl, predictions/*-dev-rows.jsonl -> Run
    2. sections     Run -> numbers: scores beside a constant's, confusions, worst mistakes, SMART, time
    3. pictures     metrics.jsonl, dev rows -> inline SVG by matplotlib
    4. write_report numbers and pictures -> run_report.html (a jinja2 template) -> report.html

The page needs no script and no network. It holds no date and no path of this machine but those that the run
wrote, so the same files give the same page, byte for byte. Works without torch.
Not handled: several runs beside each other; TensorBoard does that.
"""

import argparse
import io
import math
import re
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jinja2
import matplotlib.style
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from support.errors import UserError, exit_status, one_line
from support.files import parse_json, read_bytes, write_text
from support.screen import duration

HERE = Path(__file__).resolve().parent
WORST = 10  # mistakes of a task that are shown
LONGEST_TEXT = 600  # characters of a text that are shown
MOST_POINTS = 2000  # of a scatter plot; more would only make the page large
RESUME = ("python", "multitask_classifier.py", "--resume", "--output_dir")
TERM_NAMES = {"task": "task loss", "smart": "R_s (smart)", "bregman": "D_Breg (bregman)", "rdrop": "R-Drop"}

# -------------------------------------------------------------------------------------------- files


class Row(NamedTuple):
    """A labelled row and what the model said. Classes are names, scores are numbers.

    probabilities: by class; empty for scores, and for a task that gives none.
    """

    id: str
    texts: list[str]
    label: str | float
    prediction: str | float
    probabilities: dict[str, float]

    @property
    def loss(self) -> float:
        """Cross entropy of a class, squared error of a score, NaN of a class without probabilities."""
        if isinstance(self.label, str) and isinstance(self.prediction, str):
            probability = self.probabilities.get(self.label, math.nan)
            return -math.log(probability) if probability != 0 else math.inf
        return (float(self.prediction) - float(self.label)) ** 2


@dataclass(frozen=True)
class Run:
    """What the files of a run say.

    record, progress: of the last checkpoint; empty after `--option evaluate`. results: of `results.json`, or
    of the best epoch so far where the run has not ended. records: of `metrics.jsonl`, by kind.
    rows: dev rows by task.
    """

    ended: bool
    results: dict[str, Any]
    record: dict[str, Any]
    progress: dict[str, Any]
    records: dict[str, list[dict[str, Any]]]
    rows: dict[str, list[Row]]

    @property
    def says(self) -> dict[str, Any]:
        """What checkpoint and results say: trained tasks, data, ..."""
        return self.record | self.results

    @property
    def config(self) -> dict[str, Any]:
        """The settings."""
        return self.results["config"] if self.ended else self.record["config"]


def read_run(folder: Path) -> Run:
    """The run in a folder. Raises UserError if there is none, or that names the file that is damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    results = read_json(folder / "results.json") if (folder / "results.json").exists() else {}
    # `last.previous` alone is there where a process was killed between two renames
    places = (folder / name for name in ("last", "last.previous", "last.old", "best"))
    saved = next((place for place in places if (place / "run.json").exists()), None)
    if saved is None and not results:
        raise UserError(f"{folder}: holds no run, neither a results.json nor a checkpoint in last/")
    record = read_json(saved / "run.json") if saved else {}
    progress = {}
    if saved and (saved / "progress.json").exists():
        progress = read_json(saved / "progress.json")
    # results.json may be that of fewer epochs, before the run was resumed
    ended = bool(results) and results.get("steps") == progress.get("step", results.get("steps"))
    if not ended:
        results = progress.get("best", record)
    records: dict[str, list[dict[str, Any]]] = {}
    for where, line in json_lines(folder / "metrics.jsonl"):
        if not (isinstance(line.get("kind"), str) and isinstance(line.get("step"), int)):
            raise UserError(f"{where}: not a line of a run's log, it lacks kind or step")
        records.setdefault(line["kind"], []).append(line)
    rows = {task: list(read_rows(folder, task)) for task in results.get("dev", {})}
    return Run(ended, results, record, progress, records, rows)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError, which names the file."""
    return parse_json(path, read_bytes(path))


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, each with its place, `file:line`; nothing if there is no file.

    Raises UserError with file and line for a line that is none.
    """
    data = read_bytes(path) if path.exists() else b""
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n") if data else [], start=1):
        yield f"{path}:{number}", parse_json(f"{path}:{number}", line)


def read_rows(folder: Path, task: str) -> Iterator[Row]:
    """The dev rows of a task, none if the run has not written them. Raises UserError with file and line."""
    for where, line in json_lines(folder / "predictions" / f"{task}-dev-rows.jsonl"):
        try:
            row = Row(**{"probabilities": {}} | line)
            fits = isinstance(row.texts, list) and all(isinstance(text, str) for text in row.texts)
            fits = fits and isinstance(row.loss, float)  # which raises where a value is no number
        except (ArithmeticError, AttributeError, TypeError, ValueError):
            fits = False
        if not fits:
            raise UserError(f"{where}: not a dev row, with id, texts, label and prediction")
        yield row


# ------------------------------------------------------------------------------------------ numbers


def constant_scores(rows: Sequence[Row]) -> tuple[str, dict[str, float | None]]:
    """The best constant prediction in words, and its scores by metric; None where a metric is undefined.

    Of classes it is the most frequent label of these rows, of scores their mean.
    """
    labels = [row.label for row in rows]
    if isinstance(labels[0], str):
        (name, count), *_ = Counter(labels).most_common(1)
        share = count / len(labels)
        # F1 of this class is 2 · share · 1 / (share + 1), that of every other class 0
        return f"always “{name}”", {"accuracy": share, "macro_f1": 2 * share / (1 + share) / len(set(labels))}
    values = [float(label) for label in labels]
    mean = statistics.fmean(values)
    error = statistics.fmean((value - mean) ** 2 for value in values)
    return f"always {mean:.2f}, the mean", {"pearson": None, "spearman": None, "mean squared error": error}


def score_tables(run: Run) -> list[dict[str, Any]]:
    """The scores of each task: for each metric the model's and that of the best constant."""
    tables = []
    for task, scores in run.results.get("dev", {}).items():
        rows = run.rows[task]
        constant, of_constant = constant_scores(rows) if rows else ("", {})
        metrics = {name: value for name, value in scores.items() if name != "trained"}
        if "pearson" in of_constant:
            metrics["mean squared error"] = statistics.fmean(row.loss for row in rows)
        lines = []
        for metric, value in metrics.items():
            beside = of_constant.get(metric, math.nan)
            shown = "undefined" if beside is None else number(beside, ".3f")
            lines.append((metric.replace("_", " "), number(value, ".3f"), shown))
        trained = scores.get("trained", True)
        tables.append(
            {"task": task, "trained": trained, "rows": len(rows), "constant": constant, "lines": lines}
        )
    return tables


def number(value: float, form: str) -> str:
    """The number in this form, or a dash for NaN."""
    return "–" if math.isnan(value) else format(value, form)


def percent(probability: float) -> str:
    """A probability as `24 %`, `0.3 %` or `below 0.1 %`."""
    if probability < 0.001:
        return "below 0.1\u00a0%"
    return f"{100 * probability:.{0 if probability >= 0.01 else 1}f}\u00a0%"


def confusion(rows: Sequence[Row]) -> tuple[list[str], dict[str, dict[str, int]]]:
    """The classes, and how many rows of each true class were given which class: counts[true][predicted]."""
    found = {str(name) for row in rows for name in (row.label, row.prediction)}
    names = list(dict.fromkeys([*rows[0].probabilities, *sorted(found)]))
    pairs = Counter((str(row.label), str(row.prediction)) for row in rows)
    return names, {true: {said: pairs[true, said] for said in names} for true in names}


def worst_mistakes(rows: Sequence[Row]) -> list[Row]:
    """The rows with the highest loss among those that are wrong, the worst first; all of scores are wrong."""
    wrong = [row for row in rows if row.prediction != row.label]
    return sorted(wrong, key=lambda row: -row.loss)[:WORST]


def smart_rows(run: Run) -> list[dict[str, str]]:
    """What SMART did to each task in the last interval in which it was measured."""
    table = []
    for task in trained_tasks(run):
        measured = [record for record in run.records[f"train/{task}"] if "ascent_divergence" in record]
        if measured:
            last = measured[-1]
            table.append(
                {
                    "task": task,
                    "ratio": f"{last['delta_ratio']:.2%}",
                    "before": f"{last['random_divergence']:.2e}",
                    "after": f"{last['ascent_divergence']:.2e}",
                    "gain": f"{last['ascent_gain']:,.1f}",
                }
            )
    return table


def trained_tasks(run: Run) -> list[str]:
    """The tasks that have training records."""
    kinds = (kind.split("/", 1) for kind in run.records if kind.startswith("train/"))
    return [task for _, task in kinds]


def terms(run: Run) -> list[str]:
    """The parts of the loss that were logged: the task's own, and those with a weight among the settings."""
    weights = [name.removesuffix("_weight") for name in run.config if name.endswith("_weight")]
    logged = {
        name for task in trained_tasks(run) for record in run.records[f"train/{task}"] for name in record
    }
    return [name for name in ["task", *weights] if name in logged]


def cost_rows(run: Run) -> list[tuple[str, str]]:
    """Time and memory, by what they were spent on."""
    spent = run.results if run.ended else run.progress
    seconds = spent.get("train_seconds", spent.get("seconds"))
    table = []
    if seconds:
        table.append(("training steps", duration(seconds)))
    if spent.get("save_seconds"):
        table.append(("writing checkpoints", duration(spent["save_seconds"])))
    if "examples_per_second" in spent:
        table.append(("speed", f"{spent['examples_per_second']:,.1f} rows a second"))
    for task in trained_tasks(run):
        records = run.records[f"train/{task}"]
        pace = statistics.median(record["ms_per_step"] for record in records)
        tokens = statistics.median(record["tokens_per_second"] for record in records)
        table.append((f"a step on {task}", f"{pace:,.0f} ms, {tokens:,.0f} tokens a second (medians)"))
    if "peak_memory_gib" in spent:
        table.append(("most memory", f"{spent['peak_memory_gib']:.2f} GiB"))
    if "peak_gpu_memory_gib" in spent:
        table.append(("most memory of the GPU", f"{spent['peak_gpu_memory_gib']:.2f} GiB"))
    return table


def facts(run: Run) -> list[tuple[str, str]]:
    """What else decides the numbers."""
    config = run.config
    says = run.says
    return [
        ("option", config["option"]),
        ("encoder", config["checkpoint"] or config["model_name_or_path"]),
        ("trained tasks", ", ".join(says["trained_tasks"])),
        ("data", says["data"]),
        ("precision", ", ".join(filter(None, [config["precision"], says.get("precision_reason")]))),
        ("seed", str(config["seed"])),
        *run.record.get("versions", {}).items(),
    ]


# ----------------------------------------------------------------------------------------- pictures

# The colours in the SVG are replaced by those of the page, which differ in light and dark. Blue, vermillion
# and green are Okabe and Ito's, who chose them for colour-blind readers.
INK = "#0a0b0c"
BLUE, VERMILLION, GREEN = "#0072b2", "#d55e00", "#009e73"
PAGE_COLOURS = {INK: "currentColor", BLUE: "var(--blue)", VERMILLION: "var(--orange)", GREEN: "var(--green)"}
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "run_report",  # the same picture gets the same ids
    "text.parse_math": False,
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.18,
    "grid.color": INK,
    "lines.linewidth": 1.4,
    "lines.markersize": 2.5,
    "legend.frameon": False,
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color"),
        INK,
    ),
}


def picture(draw: Callable[[Axes], None], title: str, x: str, y: str = "") -> Markup:
    """What `draw` draws, as SVG for the page: 230 by 150 points, no background, no address in it."""
    with matplotlib.style.context(["default", STYLE]):  # whatever the user's matplotlibrc says
        figure = Figure(figsize=(3.2, 2.1))
        axes = figure.add_axes((0.16, 0.2, 0.8, 0.66))
        draw(axes)
        axes.set(xlabel=x, ylabel=y)
        axes.set_title(title, loc="right")  # on the left matplotlib writes the power of ten
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # matplotlib numbers its groups in every picture alike; an id must be there once
    svg = re.sub(r' (?:id="[a-zA-Z0-9.]+_\d+"|xmlns(?::xlink)?="[^"]*"|(?<=pt" )height="[^"]*")', "", svg)
    for colour, replacement in PAGE_COLOURS.items():
        svg = svg.replace(colour, replacement)
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{Markup.escape(title)}" ', 1))


Line = tuple[str, list[float], list[float]]  # name, x, y


def lines(series: Sequence[Line], log_scale: bool = False) -> Callable[[Axes], None]:
    """Draws lines over steps that differ in colour and in dashes."""

    def draw(axes: Axes) -> None:
        styles = zip(series, (BLUE, VERMILLION, GREEN), ("-", "--", ":"), strict=False)
        for (name, x, y), colour, dashes in styles:
            axes.plot(x, y, dashes, color=colour, label=name, marker="o" if len(x) < 30 else "")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        if log_scale and all(value > 0 for _, _, y in series for value in y):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.ticklabel_format(axis="y", scilimits=(-2, 4))
        if len(series) > 1:
            axes.legend()

    return draw


def series(records: Sequence[dict[str, Any]], key: str, name: str) -> Line:
    """The line of one number of the log."""
    there = [record for record in records if key in record]
    return name, [record["step"] for record in there], [record[key] for record in there]


def loss_pictures(run: Run) -> list[Markup]:
    """The loss curves, a picture for each task and term."""
    pictures = []
    for task in trained_tasks(run):
        for term in terms(run):
            line = series(run.records[f"train/{task}"], term, term)
            if line[1]:
                title = f"{task}: {TERM_NAMES.get(term, term)}"
                pictures.append(picture(lines([line]), title, "step"))
    return pictures


def dev_pictures(run: Run) -> list[Markup]:
    """The main metric of each task after each epoch, of student and teacher."""
    pictures = []
    for task, scores in run.results.get("dev", {}).items():
        metric = next(iter(scores))
        found = {
            "student": run.records.get(f"dev/{task}", []),
            "teacher": run.records.get(f"teacher/{task}", []),
        }
        drawn = [series(records, metric, role) for role, records in found.items() if records]
        if drawn:
            pictures.append(picture(lines(drawn), f"{task}: {metric.replace('_', ' ')}", "step"))
    return pictures


def smart_pictures(run: Run) -> list[Markup]:
    """R_s before and after the ascent, a picture for each task."""
    names = {"ascent_divergence": "after the ascent", "random_divergence": "before"}
    pictures = []
    for task in trained_tasks(run):
        drawn = [series(run.records[f"train/{task}"], key, name) for key, name in names.items()]
        if drawn[0][1]:
            pictures.append(picture(lines(drawn, log_scale=True), f"{task}: R_s", "step"))
    return pictures


def scatter_picture(task: str, rows: Sequence[Row]) -> Markup:
    """Predicted against true scores, with the line on which they are equal."""
    shown = rows[:: -(-len(rows) // MOST_POINTS)]
    labels = [float(row.label) for row in rows]

    def draw(axes: Axes) -> None:
        ends = [min(labels), max(labels)]
        axes.plot(ends, ends, "--", color=VERMILLION, linewidth=1)
        x, y = [float(row.label) for row in shown], [float(row.prediction) for row in shown]
        axes.plot(x, y, "o", color=BLUE, alpha=0.6, markeredgewidth=0, markersize=3.5)

    return picture(draw, f"{task}: predicted against true", "true", "predicted")


# --------------------------------------------------------------------------------------------- page


def page(run: Run) -> str:
    """The page as HTML. Everything that the run wrote is escaped."""
    loader = jinja2.FileSystemLoader(HERE)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["cut"] = lambda text: text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
    environment.filters["percent"] = percent
    classes = {task: rows for task, rows in run.rows.items() if rows and isinstance(rows[0].label, str)}
    scores = {task: rows for task, rows in run.rows.items() if rows and task not in classes}
    return environment.get_template("run_report.html").render(
        run=run,
        step=run.progress.get("step"),
        total_steps=run.record.get("total_steps"),
        resume_command=shlex.join([*RESUME, run.config["output_dir"]]),
        data=run.says["data"],
        score_tables=score_tables(run),
        cost_rows=cost_rows(run),
        facts=facts(run),
        confusions=[(task, *confusion(rows)) for task, rows in classes.items()],
        scatters=[scatter_picture(task, rows) for task, rows in scores.items()],
        mistakes={task: worst_mistakes(rows) for task, rows in run.rows.items()},
        smart_rows=smart_rows(run),
        loss_pictures=loss_pictures(run),
        dev_pictures=dev_pictures(run),
        smart_pictures=smart_pictures(run),
        worst=WORST,
        most_points=MOST_POINTS,
    )


def write_report(folder: Path) -> Path:
    """Make `folder`/report.html, whole or not at all, and return its path.

    Raises UserError if the folder holds no run, if a file of it is damaged, or if the page can't be written.
    """
    try:
        html = page(read_run(folder))
    except UserError:
        raise
    # a stranger's files can hold anything where a number is looked for
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        jinja2.UndefinedError,
    ) as error:
        kind = type(error).__name__
        raise UserError(f"{folder}: its files are not those of a run ({kind}: {one_line(error)})") from None
    path = folder / "report.html"
    write_text(path, html.encode("utf-8", "backslashreplace").decode())
    return path


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, or 2 for a user's mistake (one line on stderr)."""
    parser = Parser(description="Make the page of a run, report.html, from the files in its folder.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run's --output_dir: runs/finetune")

    def program() -> int:
        print(write_report(parser.parse_args(arguments).folder))
        return 0

    return exit_status("run_report.py", program)


if __name__ == "__main__":
    sys.exit(main())
