"""Any command line, data file and saved model is used, or refused in one line; hypothesis makes them up.

Each property is tried on few inputs, always the same, and (marked slow) on many that differ each time.
"""

import contextlib
import hashlib
import io
import itertools
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from random import Random
from unittest import mock

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

import dry_run
import multitask_classifier
from checkpoint import MANIFEST
from config import FINE_TUNE_MODES, SPLITS, TrainConfig, Weight, flags
from datasets import read_examples, tokenize
from evaluation import model_outputs, write_predictions
from helpers import SAMPLE, run_program
from multitask_classifier import load_model
from support.errors import UserError
from tasks import TASKS
from tiny_bert import letters_encoder


def sizes(few: int, many: int):
    """Counts of inputs: in the default tests, in the slow ones."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])


def fuzz(count: int, **inputs):
    """Calls the decorated function with `count` generated inputs, the same in every run if they are few."""
    quiet = {"database": None, "deadline": None, "suppress_health_check": list(HealthCheck)}
    size = settings(max_examples=count, derandomize=count < 500, **quiet)
    return lambda check: size(given(**inputs)(check))()


def call(arguments) -> tuple[int, str]:
    """Exit status and standard error of the command line, whose standard input is empty;
    like a terminal, its standard output takes UTF-8 only."""
    terminal = io.TextIOWrapper(io.BytesIO(), "utf-8")
    error = io.StringIO()
    no_input = mock.patch.object(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with no_input, contextlib.redirect_stdout(terminal), contextlib.redirect_stderr(error):
        status = run_program(*arguments)
    return status, error.getvalue()


def assert_said_in_one_line(status: int, error: str) -> None:
    assert status in (0, 2), error
    if status == 2:
        assert error.startswith("multitask_classifier.py: error: "), error
        assert len(error.splitlines()) == 1 and error.endswith("\n"), error


@pytest.fixture(scope="module", autouse=True)
def no_folder_left_behind(tmp_path_factory):
    """What hypothesis stores between runs goes to a temporary folder, not to the working directory."""
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a tiny encoder, a dozen rows of each sample file, and a short run with SMART on them."""
    folder = tmp_path_factory.mktemp("fuzz")
    letters_encoder(folder / "encoder")
    (folder / "data").mkdir()
    for file in SAMPLE.glob("*.csv"):
        (folder / "data" / file.name).write_text("".join(file.read_text().splitlines(keepends=True)[:13]))
    places = ["--model_name_or_path", folder / "encoder", "--data_dir", folder / "data"]
    size = ["--epochs=1", "--steps_per_epoch=3", "--batch_size=4", "--tasks=sst,sts"]
    status, error = call([*places, *size, "--use_smart", "--output_dir", folder / "run"])
    assert status == 0, error
    return folder


# --------------------------------------------------------------------------------------- command lines

# fmt: off
SILLY = [
    "", " ", "nan", "inf", "-1", "0", "1", "1e400", "-1e400", "1e-400", "1e300", "9" * 30, "9" * 400,
    "9" * 5000, "=", "sst=", "sst=1,sst=2", ",", "sst,", "None", "a\nb", "caf\udce9", "日本", "🎬", "\0",
    "a\0b", "x" * 300, "x" * 5000, ".", "..", "file", "folder", "--lr", "%s", "{}",
]
# fmt: on
TEXT = ["folder", "file", "fitted", "0.9", "minilm"]
NUMBERS = {int: ["8", "1", "100"], float: ["0.5", "0.001"], Weight: ["1", "0", "sst=1,sts=0.5"], bool: []}
NUMBERS |= {int | None: NUMBERS[int], tuple[str, ...]: ["sst", "sts,para"]}
SETTINGS = {
    setting.name: setting.metadata["allowed"]
    if isinstance(setting.metadata["allowed"], tuple)
    else NUMBERS.get(setting.type, TEXT)
    for setting in flags(TrainConfig)
}
FILES = {f"{task}_{name}": TEXT for task in TASKS for name in (*SPLITS, "dev_out", "test_out")}
VALID = SETTINGS | FILES | {"fine-tune-mode": tuple(FINE_TUNE_MODES)}  # valid values of each flag


def command_line(random: Random) -> list[str]:
    """Some flags with valid values, fewer with silly ones, and now and then a word that is no flag."""
    arguments = []
    silly = random.randint(0, 2)
    for _ in range(random.randint(0, 6)):
        name = random.choice(sorted(VALID))
        values = VALID[name]
        if random.randint(0, 4) < silly:
            any_text = "".join(chr(random.randrange(0xD800)) for _ in range(random.randint(0, 9)))
            values = random.choice([SILLY, [any_text]])
        if not values:
            arguments.append(f"--{name}")
        else:
            value = random.choice(values)
            arguments += random.choice([[f"--{name}={value}"], [f"--{name}", value]])
    if random.randint(0, 9) == 0:
        arguments.insert(random.randint(0, len(arguments)), random.choice(SILLY))
    return arguments


# hypothesis's own lists would leave out some flags in every two hundred lines
COMMAND_LINES = st.randoms(use_true_random=True).map(command_line)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The file and the folder that VALID names. No compiler is started, and torch's own switches stay."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(multitask_classifier, "make_deterministic", lambda *_: None)
    monkeypatch.setattr(dry_run, "check_compiled", lambda *_: None)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--lr", "1e400"], "--lr inf: must be a finite number"),
        (["--lr", "2", "--weight_decay", "0.5"], "--weight_decay"),
        (["--smart_weight", "sst=1,sst=2"], "names a task twice"),
        (["--", "a\nb"], "unknown flag --;"),
        (["--output_dir", "a\0b"], "--output_dir"),
        (["--output_dir", "caf\udce9"], "--output_dir"),
    ],
)
def test_what_the_fuzz_has_found_stays_mended(arguments, named, offline):
    """Guards against values that once gave a traceback, or were silently taken for others."""
    status, error = call(arguments)
    assert_said_in_one_line(status, error)
    assert status == 2 and named in error


@sizes(120, 1000)
def test_any_command_line_starts_or_is_refused(count, workshop, tmp_path, offline, places, monkeypatch):
    """Guards against a traceback, or silence, for a mistyped flag or a value that ends the program once files
    and encoder are read; and against settings that a checkpoint's JSON changes."""
    outcomes = Counter()

    def stop(*arguments, **_):
        outcomes["begun"] += 1
        for config in arguments:
            if isinstance(config, TrainConfig):
                outcomes["settings"] += 1
                assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        raise UserError("the training would begin here")

    for name in ("train", "evaluate", "predict"):
        monkeypatch.setattr(multitask_classifier, name, stop)
    shutil.copytree(workshop / "encoder", tmp_path / "minilm")
    base = ["--data_dir", workshop / "data", "--model_name_or_path", workshop / "encoder"]
    base += ["--output_dir", tmp_path / "out"]

    @fuzz(count, arguments=COMMAND_LINES, saved=st.booleans())
    def check(arguments, saved):
        checkpoint = ["--option=evaluate", "--checkpoint", workshop / "run"] if saved else []
        assert_said_in_one_line(*call([*base, *checkpoint, *arguments]))

    assert min(outcomes["begun"], outcomes["settings"]) > count // 20, outcomes


# ----------------------------------------------------------------------------------------------- files

# fmt: off
ODD_FIELDS = [
    "", " ", '"', '"open', 'a "b" c', '"a\nb"', '"a\tb"', "\t", "\n", "\r", "\0", "\ufeff", "\u2028",
    "e\u0301 🎬👍🏽", "\ud800", "\U0010ffff", "word " * 10_000, "x" * 200_000, "a , b", "=1+1", "[SEP]",
    "id0", "nan", "inf", "1e999", "0_1", "１", "1.0", "-0", "0x1", "5.0000001", "1e-400", "True",
]
# fmt: on
BREAKS = re.compile("\r\n|\r|\n")
HIGHEST = {"sst": 4, "para": 1, "sts": 5, "cfimdb": 1}  # label of each built-in task; the lowest is 0


@st.composite
def course_files(draw, task, labelled: bool) -> bytes:
    """A valid file, with tabs or commas, of which some fields are odd and some bytes are damaged."""
    id_column = draw(st.sampled_from([["id"], ["id"], []]))
    names = ["", *id_column, *task.text_columns, *([task.label_column] if labelled else [])]
    header = draw(st.permutations(names))
    valid = dict.fromkeys(task.text_columns, "a fine film") | {task.label_column: "1"}
    count = draw(st.sampled_from([0, 1, 3, 12, 300]))
    rows = [header, *([valid.get(name, f"{name}{i}") for name in header] for i in range(count))]
    fields = st.sampled_from(ODD_FIELDS) | st.text(max_size=9)
    odd = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 4), fields), max_size=3)
    for place, column, field in draw(odd):
        row = rows[place % len(rows)]
        row[column % len(row)] = field
    separator = draw(st.sampled_from("\t\t,"))
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n"]))
    start = draw(st.sampled_from(["", "", "\ufeff", end]))
    data = (start + "".join(separator.join(row) + end for row in rows)).encode("utf-8", "surrogatepass")
    damage = st.tuples(st.sampled_from(["flip", "delete", "insert", "truncate"]), st.floats(0, 1))
    for kind, share in draw(st.lists(damage, max_size=2)):
        extra = draw(st.binary(min_size=1, max_size=3))
        place = int(share * len(data))
        skipped = {"flip": len(extra), "delete": extra[0], "insert": 0, "truncate": len(data)}[kind]
        middle = extra if kind in ("flip", "insert") else b""
        data = data[:place] + middle + data[place + skipped :]
    return data


@st.composite
def data_files(draw):
    """(task, whether the file has labels, its content)."""
    task = TASKS[draw(st.sampled_from(list(HIGHEST)))]
    labelled = draw(st.booleans())
    content = course_files(task, labelled) if draw(st.integers(0, 9)) else st.binary(max_size=300)
    return task, labelled, draw(content)


def ids_by_hand(data: bytes) -> list[str]:
    """The ids of a file without quotes, blank lines left out; the numbers of its rows if it has no ids."""
    lines = [line for line in BREAKS.split(data.decode("utf-8-sig")) if line]
    separator = "," if "," in lines[0] and "\t" not in lines[0] else "\t"
    header, *rows = [line.split(separator) for line in lines]
    names = [name.strip() for name in header]
    if "id" not in names:
        return [str(number) for number in range(1, len(rows) + 1)]
    return [row[names.index("id")].strip() for row in rows]


@sizes(150, 1500)
def test_any_file_is_read_or_refused_with_file_and_line(count, workshop, tmp_path):
    """Guards against tracebacks, labels outside their range, rows lost or doubled, odd text that the reader
    takes and tokenizer or model do not, and a prediction file from which the ids cannot be read again."""
    path = tmp_path / "rows.csv"
    model, tokenizer, _ = load_model(workshop / "run" / "best")
    outcomes = Counter()

    @fuzz(count, file=data_files())
    def check(file):
        task, labelled, data = file
        path.write_bytes(data)
        try:
            examples = read_examples(path, task, labelled)
        except UserError as error:
            if data.startswith(b"version https://git-lfs"):  # no line of it is wrong, the whole file is
                return
            said = re.fullmatch(re.escape(f"{path}:") + r"(\d+): [^\n\r]+", str(error))
            assert said and 1 <= int(said[1]) <= len(re.split(b"\r\n|\r|\n", data)), error
            outcomes["refused", labelled] += 1
            return
        outcomes["read", labelled] += 1
        dataset = tokenize(examples, task, tokenizer, 16)
        assert len(dataset) == len(examples) > 0 and all(example.id for example in examples)
        assert dataset.lengths.min() >= 2 and dataset.lengths.max() <= 16
        assert len(dataset.tokens) == dataset.starts[-1]
        if labelled:
            assert all(all(example.texts) for example in examples)
            labels = dataset.labels.tolist()
            assert all(0 <= label <= HIGHEST[task.name] for label in labels)
            assert task.name == "sts" or all(label % 1 == 0 for label in labels)
        else:
            assert dataset.labels is None
            assert b'"' in data or dataset.ids == ids_by_hand(data)
        if task.name in model.heads:
            assert model_outputs(model, dataset, 64).isfinite().all()
        write_predictions(tmp_path / "out.csv", task.prediction_column, dataset.ids, np.arange(len(dataset)))
        header, *lines = (tmp_path / "out.csv").read_bytes().decode().splitlines()
        written = [tuple(line.removesuffix(" ").split(" , ")) for line in lines]
        assert written == [(id, str(i)) for i, id in enumerate(dataset.ids)]

    expected = itertools.product(("read", "refused"), (True, False))
    assert all(outcomes[outcome] >= count // 20 for outcome in expected), outcomes


# ---------------------------------------------------------------------------------------- saved models

GARBAGE = [None, True, -1, 0, 10**30, float("nan"), "", "x", "\ud800", [], {}, ["sst"], {"a": 1}]
TENSOR_GARBAGE = [
    lambda tensor: tensor.to(torch.int8),
    lambda tensor: tensor.to(torch.float32) * float("nan"),
    lambda tensor: tensor[None],
    lambda tensor: tensor.flatten()[:0],
]


def with_garbage(draw, value):
    """A copy of the JSON value, in which one part anywhere inside is replaced or deleted."""
    if not isinstance(value, (dict, list)) or not value or draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(GARBAGE))
    copy = value.copy()
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    if draw(st.integers(0, 3)):
        copy[key] = with_garbage(draw, value[key])
    else:
        del copy[key]
    return copy


def with_other_tensors(draw, tensors: dict) -> dict:
    """The tensors with one of them removed, renamed or turned into something else."""
    name = draw(st.sampled_from(sorted(tensors)))
    tensors = dict(tensors)
    tensor = tensors.pop(name)
    kind = draw(st.sampled_from(["removed", "renamed", "changed", "changed"]))
    if kind == "renamed":
        tensors["other"] = tensor
    if kind == "changed":
        tensors[name] = draw(st.sampled_from(TENSOR_GARBAGE))(tensor)
    return tensors


def spoil(draw, folder: Path) -> None:
    """Damage a file of the checkpoint folder, and give it a right checksum, as if saved that way."""
    digests = json.loads((folder / MANIFEST).read_text())
    file = draw(st.sampled_from(sorted(digests)))
    data = (folder / file).read_bytes()
    if file.endswith(".json"):
        new = json.dumps(with_garbage(draw, json.loads(data))).encode()
    else:
        new = safetensors.torch.save(with_other_tensors(draw, safetensors.torch.load(data)))
    (folder / file).write_bytes(new)
    (folder / MANIFEST).write_text(json.dumps(digests | {file: hashlib.sha256(new).hexdigest()}))


@sizes(20, 200)
def test_any_model_is_used_or_refused(count, workshop, tmp_path, offline):
    """Guards against a saved model that ends in a traceback, or is used though damaged."""
    best = tmp_path / "run" / "best"
    outcomes = Counter()
    places = ["--data_dir", workshop / "data", "--output_dir", tmp_path / "out"]

    @fuzz(count, data=st.data())
    def check(data):
        shutil.rmtree(best, ignore_errors=True)
        shutil.copytree(workshop / "run" / "best", best)
        spoil(data.draw, best)
        status, error = call(["--option=evaluate", "--checkpoint", best.parent, *places])
        assert_said_in_one_line(status, error)
        outcomes[status] += 1

    assert outcomes[2] > count // 10 and outcomes[0], outcomes
