"""The page of a run: its numbers by hand, its files, and what a browser shows of it."""

import html
import json
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from matplotlib.figure import Figure

import multitask_classifier
import report
from helpers import FAST, SAMPLE, run_program, run_python, run_stopped, warnings_of

CONFIG = {"option": "finetune", "model_name_or_path": "minilm", "checkpoint": None, "precision": "fp32"}
CONFIG |= {"seed": 1, "use_smart": False, "smart_weight": 1.0, "output_dir": "runs/toy", "resume": False}


def row(id: str, text: str, label, prediction, **probabilities: float) -> dict:
    said = {"id": id, "texts": [text], "label": label, "prediction": prediction}
    return said | ({"probabilities": probabilities} if probabilities else {})


# Two classes, "no" three times and "yes" once; the scores 0, 1 and 5 with the mean 2.
CLASSES = [
    row("a", "right", "no", "no", no=0.9, yes=0.1),
    row("b", "wrong, hardly", "no", "yes", no=0.45, yes=0.55),
    row("c", "wrong, and sure", "no", "yes", no=0.02, yes=0.98),
    row("d", "wrong, fairly", "yes", "no", no=0.7, yes=0.3),
]
SCORES = [row("a", "by 1", 0.0, 1.0), row("b", "by 0", 1.0, 1.0), row("c", "by 3", 5.0, 2.0)]


def write_run(folder: Path, rows: dict[str, list[dict]], **results) -> Path:
    """A folder with the files that a finished run of these dev rows would have left."""
    scores = {"accuracy": 0.25, "macro_f1": 0.25}
    dev = {task: scores if task == "yesno" else {"pearson": 0.5} for task in rows}
    usual = {"dev": dev, "best_step": 6, "steps": 6, "trained_tasks": list(rows), "data": "mine"}
    (folder / "predictions").mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(usual | {"config": CONFIG} | results))
    for task, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "predictions" / f"{task}-dev-rows.jsonl").write_text(text)
    records = [{"step": step, "kind": f"train/{task}", "task": 1.0} for task in rows for step in (3, 6)]
    speed = {"ms_per_step": 10.0, "tokens_per_second": 100.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line | speed) + "\n" for line in records))
    return folder


def shown(folder: Path) -> str:
    """The text of the page that a run has left, or of a new one, without pictures and tags, every run of
    blanks one blank."""
    page = folder / "report.html"
    text = (page if page.exists() else report.write_report(folder)).read_text(encoding="utf-8")
    body = re.sub(r"<svg.*?</svg>", "", text[text.index("<body>") :], flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


# ------------------------------------------------------------------------------------ numbers by hand


def test_the_constants_scores_by_hand():
    """Guards against a baseline that flatters the model, and against a model that always says one of two
    equally frequent classes and looks better, or worse, than the constant of the other one."""
    rows = [report.Row(**line) for line in CLASSES]
    name, scores = report.constant_scores(rows)
    assert name == "always “no”"
    # "no": precision 3/4, recall 1, F1 6/7; "yes": F1 0
    assert scores == pytest.approx({"accuracy": 3 / 4, "macro_f1": 3 / 7})
    name, scores = report.constant_scores([report.Row(**line) for line in SCORES])
    assert name == "always 2.00, the mean" and scores == pytest.approx({"mean squared error": 14 / 3})
    tie = [report.Row(str(k), ["a"], "no" if k % 2 else "yes", "no") for k in range(10)]
    samples = report.resampled_scores(tie)
    assert report.constant_scores(tie)[0] == "always “no”"
    assert (samples["accuracy"] == samples["constant"]).all()


def test_intervals_are_those_of_chance():
    """Guards against an interval that is half as wide as it should be, or that forgets that the constant's
    score moves with the rows, too. 400 rows: of 300 with the label "no" 240 are right, of 100 "yes" 40."""
    counts = {("no", "no"): 240, ("no", "yes"): 60, ("yes", "yes"): 40, ("yes", "no"): 60}
    rows = [report.Row("a", ["b"], *pair) for pair, count in counts.items() for _ in range(count)]
    samples = report.resampled_scores(rows)
    assert samples["accuracy"].std() == pytest.approx((0.7 * 0.3 / 400) ** 0.5, rel=0.1)
    # a row counts -1 with probability .15 ("no" taken for "yes"), +1 with .1
    difference = samples["accuracy"] - samples["constant"]
    assert difference.mean() == pytest.approx(-0.05, abs=0.005)
    assert difference.std() == pytest.approx(((0.25 - 0.05**2) / 400) ** 0.5, rel=0.1)
    assert samples["macro_f1"].mean() == pytest.approx((480 / 600 + 80 / 200) / 2, abs=0.01)
    random = np.random.default_rng(1)
    x, noise = random.standard_normal((2, 400))
    pairs = [report.Row("a", ["b"], float(a), float(a + b)) for a, b in zip(x, noise, strict=True)]
    r = np.corrcoef(x, x + noise)[0, 1]
    low, high = report.span(report.resampled_scores(pairs)["pearson"])
    by_fisher = np.tanh(np.arctanh(r) + np.array([-1.96, 1.96]) / 397**0.5)
    assert (low, high) == pytest.approx(tuple(by_fisher), abs=0.015)


def test_what_the_page_says_first(tmp_path):
    """Guards against a model that is no better than none and looks like a success."""
    wrong = [row(str(k), "a", "no" if k < 90 else "yes", "no") for k in range(100)]
    good = [row(str(k), "a", k % 5 + 0.0, k % 5 + 0.1) for k in range(100)]
    dev = {"same": {"accuracy": 0.9}, "good": {"pearson": 1.0}, "left": {"pearson": 0.3, "trained": False}}
    scores = {"same": wrong, "good": good, "left": good}
    text = shown(write_run(tmp_path / "run", scores, dev=dev, untrained_cosine={"good": 0.4}))
    assert "same can’t be told from always “no”: +0.000" in text
    assert "good is better than the untrained encoder’s cosine by 0.600 (95 % interval +0.600 to" in text
    assert "left is" not in text and "left (not trained)" in text
    assert "same: every answer is “no”." in text
    assert text.index("any good?") < text.index("Scores on dev") < text.index("What was predicted")
    assert text.index("worst mistakes") < text.index("Loss curves")


def test_rare_answers_and_flat_scores_are_said():
    """Guards against a class that the model never answers, which the accuracy hides."""

    def remarks(labels: list, answers: list) -> list[str]:
        rows = [report.Row("a", ["b"], *pair) for pair in zip(labels, answers, strict=True)]
        return report.remarks("t", rows)

    labels = ["no"] * 50 + ["perhaps"] * 40 + ["yes"] * 10
    answers = ["no"] * 88 + ["perhaps"] * 3 + ["yes"] * 9
    assert remarks(labels, answers) == ["t: “perhaps” is 40% of the rows and 3% of the answers."]
    scores = [k / 20 for k in range(101)]
    words = "nine of ten predictions lie between 2.02 and 2.48, nine of ten labels between 0.25 and 4.75."
    assert remarks(scores, [2 + k / 200 for k in range(101)]) == [f"t: {words}"]
    assert remarks(scores, [k / 30 for k in range(101)]) == []


def test_the_page_shows_scores_confusions_and_the_worst_mistakes(tmp_path):
    """Guards against a matrix with its axes exchanged, and mistakes that are not the worst ones."""
    cosine = {"untrained_cosine": {"score": 0.875}}
    text = shown(write_run(tmp_path / "run", {"yesno": CLASSES, "score": SCORES}, **cosine))
    assert re.search(r"accuracy 0.250 0.000 to 0.\d+ 0.750", text)
    assert re.search(r"macro f1 0.250 \S+ to \S+ 0.429", text)
    assert re.search(r"pearson 0.500 \S+ to \S+ – 0.875", text)
    assert re.search(r"mean squared error 3.333 \S+ to \S+ 4.667", text)
    assert "true \\ predicted no yes no 1 2 yes 1 0" in text
    worst = [text.index(words) for words in ("wrong, and sure", "wrong, fairly", "wrong, hardly")]
    assert worst == sorted(worst) and "right row" not in text
    assert text.index("by 3") < text.index("by 1") and "by 0" not in text
    assert "predicted 98.0%, true 2.0%" in text
    assert "SMART was off" in text and "mine" in text


def test_a_long_task_without_probabilities(tmp_path):
    """Guards against a task of the user's own, whose record gives no probabilities, that has no page, and
    against a page that holds the whole dev set, or a novel. Runs of before have no untrained cosine."""
    rows = [row(f"i{n}", f"text {n:02d} " + "w" * 5000, "no", "yes") for n in range(30)]
    text = shown(write_run(tmp_path / "run", {"yesno": rows}))
    assert "true \\ predicted no yes no 0 30 yes 0 0" in text and "untrained" not in text
    assert re.findall(r"text (\d\d)", text) == [f"{n:02d}" for n in range(10)] and len(text) < 12_000


HOSTILE = [
    "<script>document.title='run'</script>",
    "<img src=x onerror=alert(1)>",
    "</blockquote></li><h1>gone",
    "{{ 7 * 7 }} {% raw %}",
    "$\\frac{1}{$ & \" ' \x1b[31m \u2028 \u202e",
]


def test_text_of_the_data_is_inert(tmp_path):
    """Guards against a data file that runs code in the browser of whoever looks at the run."""
    rows = [row(text, text, 0.0, float(n)) for n, text in enumerate(HOSTILE)]
    named = {"<b>\"'&": [row("a", "b", "<i>", "</table>", **{"<i>": 0.1, "</table>": 0.9})] * 2}
    folder = write_run(tmp_path / "run", {"s<script>": rows} | named, data="<script src=x>")
    page = report.write_report(folder).read_text(encoding="utf-8")
    assert not re.search(r"<script|<img|<h1>gone|<i>|<b>", page) and "{{ 7 * 7 }} {% raw %}" in page
    assert page.count("</table>") == page.count("<table")


# ----------------------------------------------------------------------------------------- comparison


def three_runs(folder: Path) -> list[Path]:
    """A setting with two seeds, and another one with other dev rows."""
    found = []
    for name, accuracy, settings in [
        ("a", 0.5, {}),
        ("b", 0.7, {"seed": 2, "output_dir": "runs/b"}),
        ("c", 0.65, {"use_smart": True, "smart_weight": {"yesno": 3.0}}),
    ]:
        rows = CLASSES[:3] if name == "c" else CLASSES
        results = {"config": CONFIG | settings, "dev": {"yesno": {"accuracy": accuracy}}, "train_seconds": 60}
        found.append(write_run(folder / name, {"yesno": rows}, **results))
    return found


def test_runs_side_by_side(tmp_path, capsys):
    """Guards against seeds that are taken for settings, a standard error without √n, and a comparison of
    scores on different rows without a word. Mean .6, deviation √.02, so the error is .1."""
    folders = three_runs(tmp_path / "runs")
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("no folder")
    assert report.main([str(tmp_path / "runs" / "*")]) == 0
    said = capsys.readouterr()
    assert re.search(r"^a +2 +0.600 ±0.100 +1:00 min$", said.out, re.MULTILINE)
    assert re.search(r"^c +1 +0.650 +1:00 min\n +\+0.050$", said.out, re.MULTILINE)
    assert "c: --smart_weight yesno=3.0 --use_smart True\n" in said.out and "--seed" not in said.out
    assert "yesno: c was scored on other dev rows than a" in said.out
    assert "left out: " in said.err and "empty" in said.err and said.err.count("\n") == 1
    assert max(map(len, said.out.splitlines()[:-1])) <= 100
    page = tmp_path / "runs" / "comparison.html"
    before = page.read_text(encoding="utf-8")
    assert "0.600 ±0.100" in before and "<small>+0.050</small>" in before and "yesno: dev" in before
    assert report.main([str(folder) for folder in folders]) == 0
    assert page.read_text(encoding="utf-8") == before
    assert report.main([str(tmp_path / "runs" / "empty"), str(tmp_path / "runs" / "notes.txt")]) == 2
    shutil.copytree(folders[0], tmp_path / "copy")  # no second seed, so no standard error
    capsys.readouterr()
    assert report.main([str(folders[0]), str(tmp_path / "copy")]) == 0
    said = capsys.readouterr()
    assert "settings and seed of" in said.err and "±" not in said.out


# --------------------------------------------------------------------------------------- the run's end


def test_one_line_of_log_makes_no_curve(tmp_path):
    """Guards against a page full of plots of one point, with ticks at steps such as 2.9."""
    folder = write_run(tmp_path / "run", {"yesno": CLASSES})
    log = folder / "metrics.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    assert "one line of it, which makes no curve" in shown(folder)
    assert "<svg" not in (folder / "report.html").read_text(encoding="utf-8")
    axes = Figure().subplots()
    report.draw_lines(axes, "a run beside others", [report.Line("a", [(3, 0.5)])])
    assert [tick for tick in axes.get_xticks() if tick != int(tick)] == []


def test_a_finished_run_leaves_its_page(sample_run):
    """Guards against a section that a real run's files leave empty."""
    text = shown(sample_run)
    assert "Of the " in text and " after step 6, the best epoch." in text
    for words in ("sst 24 rows", "para 24 rows", "always “", "untrained cosine", "R_s before", "GiB"):
        assert words in text, words
    page = (sample_run / "report.html").read_text(encoding="utf-8")
    titles = re.findall(r'<svg role="img" aria-label="([^"]+)"', page)
    curves = [f"{task}: {term}" for task in ("sst", "para", "sts") for term in ("task loss", "R_s (smart)")]
    assert {*curves, "sts: predicted against true", "sst: D_Breg (bregman)", "para: R_s"} <= set(titles)
    given = re.search(r" command (.+?) training .+ Flags that differ from the defaults (.+?) option", text)
    assert given[1].startswith("python multitask_classifier.py --use_smart --bregman_beta 0.5 --max_train_s")
    assert "--logging_steps 3" in given[2] and "--precision" not in given[2]  # 3 was given, precision was not
    assert not re.search(r"https?:|<script|@import|url\((?!#)", page)


def test_dev_rows_hold_what_the_files_said(sample_run):
    """Guards against texts, labels or probabilities of other rows."""
    for task, columns in {"sst": 1, "para": 2, "sts": 2}.items():
        record = multitask_classifier.TASKS[task]
        file = sample_run / "predictions" / f"{task}-dev-rows.jsonl"
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        output = (sample_run / "predictions" / f"{task}-dev-output.csv").read_text().splitlines()[1:]
        source = (SAMPLE / record.filename("dev")).read_text().splitlines()
        data = {line.split("\t")[1]: line for line in source}
        names = record.label_names
        assert len(rows) == 24
        for line, written in zip(rows, output, strict=True):
            id, value = written.split(" , ")
            assert line["id"] == id and len(line["texts"]) == columns
            assert "\t".join(line["texts"]) in data[id]
            label, value = float(data[id].split("\t")[-1]), float(value)
            if names:
                assert (line["label"], line["prediction"]) == (names[int(label)], names[int(value)])
                assert list(line["probabilities"]) == list(names)
                assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
                assert max(line["probabilities"], key=line["probabilities"].get) == line["prediction"]
            else:
                assert (line["label"], line["prediction"]) == pytest.approx((label, value), rel=1e-5)


def test_the_page_is_made_again_byte_for_byte_without_torch(sample_run, tmp_path):
    """Guards against a page that needs what only the run knew, or the machine of the run."""
    before = (sample_run / "report.html").read_bytes()
    shutil.copytree(sample_run, tmp_path / "moved")
    (tmp_path / "moved" / "report.html").unlink()
    blocked = "import sys; sys.modules.update(torch=None, transformers=None)"
    script = f"{blocked}; import report; sys.exit(report.main(sys.argv[1:]))"
    said = run_python(script, tmp_path / "moved", cwd=tmp_path)
    assert said.strip() == str(tmp_path / "moved" / "report.html")
    assert (tmp_path / "moved" / "report.html").read_bytes() == before


def test_a_stopped_run_leaves_a_page_that_says_how_to_resume(main, encoder, tmp_path):
    """Guards against a page of a stopped run that looks like that of a finished one, or is missing."""
    folder = tmp_path / "a run"
    start = [*FAST, "--tasks", "sst", "--epochs", 2, "--save_steps", 2, "--model_name_or_path", encoder]
    resume = ["--resume", "--output_dir", folder]
    run_stopped(1, *start, "--output_dir", folder)
    assert (folder / "report.html").exists()
    text = shown(folder)
    assert "No epoch has ended" in text and "accuracy" not in text
    assert "Stopped, or still running, after step 2 of 12." in text
    assert f"python multitask_classifier.py --resume --output_dir '{folder}'" in text
    run_stopped(3, *resume)
    text = shown(folder)
    assert "after step 6, the best epoch so far." in text and "accuracy" in text and "step 8 of 12" in text
    assert main(*resume) == 0
    text = shown(folder)
    assert "Stopped" not in text and "resumed at least once" in text and "--epochs 2" in text
    run_stopped(1, *resume, "--epochs", 3)
    assert "after step 14 of 18." in shown(folder)  # results.json is that of an earlier end


def test_a_page_without_training_and_one_that_fails(
    sample_run, tmp_path, monkeypatch, no_course_data, caplog
):
    """Guards against a page that needs a log, against pictures that nobody wants, and against hours of
    training that end with status 1 for want of a picture."""
    arguments = ["--option", "evaluate", "--checkpoint", sample_run, "--eval_tasks", "sts"]
    assert run_program(*arguments, "--no_report", "--output_dir", tmp_path) == 0
    assert not (tmp_path / "report.html").exists()
    text = shown(tmp_path)
    assert "sts 50 rows" in text and "The log holds no training" in text and "accuracy" not in text
    monkeypatch.setattr(report, "picture", Mock(side_effect=RuntimeError("a bug")))
    assert run_program(*arguments, "--output_dir", tmp_path / "out") == 0
    (warning,) = [words for words in warnings_of(caplog) if "report.html" in words]
    assert warning.count("\n") == 0 and (tmp_path / "out" / "results.json").exists()
    assert not list((tmp_path / "out").glob("report*"))


# ------------------------------------------------------------------------------------------ bad input


GOOD_LINE = '{"kind": "train/yesno", "step": 3, "task": 1.0}\n'


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("metrics.jsonl", GOOD_LINE + '{"kind"', "metrics.jsonl:2: not JSON"),
        ("metrics.jsonl", '{"kind": "train/yesno", "step": 3}\n', "not those of a run"),
        ("predictions/yesno-dev-rows.jsonl", "\n", "yesno-dev-rows.jsonl:1: not JSON"),
        ("predictions/yesno-dev-rows.jsonl", '{"id": "a", "label": "no"}\n', "not those of a run"),
        ("results.json", "{", "results.json: not JSON"),
        ("results.json", "{}", "holds no run"),
    ],
)
def test_a_damaged_folder_is_one_line_and_status_2(tmp_path, capsys, file, content, named):
    """Guards against tracebacks, and against half a page, or an old page that is lost."""
    folder = write_run(tmp_path / "run", {"yesno": CLASSES})
    (folder / "report.html").write_text("the old page")
    (folder / file).write_text(content)
    assert report.main([str(folder)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("report.py: error: ") and said.err.count("\n") == 1 and said.out == ""
    assert named in said.err and str(folder) in said.err
    assert (folder / "report.html").read_text() == "the old page" and not list(folder.glob("*.part"))
    assert report.main([str(tmp_path / "nowhere")]) == 2
    assert "holds no run" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LONG = "w" * 3000


@pytest.fixture(scope="module")
def odd_page(tmp_path_factory) -> Path:
    """A page whose texts and names try to break the layout."""
    texts = [*HOSTILE, LONG, "מימין לשמאל"]
    rows = {LONG[:40]: [row(LONG, text, 0.0, 1e30 * n) for n, text in enumerate(texts)]}
    rows["yesno"] = [row("a", "b", LONG, "no", **{LONG: 0.1, "no": 0.9})]
    config = CONFIG | {"output_dir": LONG, "command": f"python {LONG} --x {LONG}"}
    config["differing"] = f"  x  --{LONG}"
    folder = write_run(tmp_path_factory.mktemp("odd") / "run", rows, config=config, data=LONG)
    return report.write_report(folder)


@pytest.fixture(scope="module")
def compared(odd_page) -> Path:
    """A comparison with a page whose names are long."""
    return report.write_comparison([*three_runs(odd_page.parent.parent / "runs"), odd_page.parent])


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_nothing_overflows_and_the_console_is_silent(sample_run, odd_page, compared, width, scheme):
    """Guards against a page that needs a wide screen, a network or scripts, or that is black on black."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for path in (sample_run / "report.html", odd_page, compared):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            said, asked = [], []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            wide = "e => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest('.scroll')"
            assert page.evaluate(f"[...document.body.querySelectorAll('*')].filter({wide}).length") == 0
            colour = "e => getComputedStyle(e).{}.match(/[0-9.]+/g).slice(0, 3).map(Number)"
            ink = page.eval_on_selector("body", colour.format("color"))
            paper = page.eval_on_selector("body", colour.format("backgroundColor"))
            assert (sum(ink) < sum(paper)) == (scheme == "light")
            assert page.eval_on_selector("svg text", colour.format("fill")) == ink
            assert said == [] and asked == [path.as_uri()]
