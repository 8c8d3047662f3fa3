"""Whole runs with each way to mix tasks, and with texts without labels."""

import dataclasses
import json

import pytest

import multitask_classifier
from config import TrainConfig
from helpers import SAMPLE, run_program, run_stopped
from kill_and_resume import outcome
from multitask_classifier import training_loss
from mysmartloss import BregmanProximal
from tasks import TASKS
from tiny_bert import tiny_batch, tiny_model

SHORT = ["--max_train_samples=24", "--max_eval_samples=12", "--batch_size=4", "--epochs=2"]
SHORT += ["--steps_per_epoch=5", "--save_steps=3", "--logging_steps=2", "--no_report", "--max_length=64"]
UNLABELLED = ["--use_smart", "--unlabelled_task=sst", "--unlabelled_file"]  # and a file
WAYS = {
    "annealed": ["--schedule=annealed", "--similarity=cosine", "--contrastive_weight=.1", "--keep=teacher"],
    "joint": ["--schedule=joint", "--gradient_surgery=pcgrad", "--max_tokens=128"],
    "proportional": ["--schedule=proportional", "--use_smart", "--adversary=freelb", "--smart_steps=2"],
}
WAYS["annealed"] += ["--smart_every=3"]
WAYS["joint"] += ["--task_weights=sst=1,para=0.5"]
WAYS["proportional"] += ["--rdrop_weight=.5", "--gradient_accumulation_steps=2"]
WAYS["proportional"] += ["--head_lr=1e-2", "--layer_lr_decay=.8", "--eval_steps=4", "--patience=9"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A file of texts without labels."""
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    path.write_bytes((SAMPLE / TASKS["sst"].filename("test")).read_bytes())
    return path


@pytest.fixture(scope="module")
def words(encoder, texts):
    """The flags of a run in a way to mix tasks."""
    places = ["--model_name_or_path", encoder, "--data_dir", SAMPLE]
    return lambda way: [*places, *SHORT, *WAYS[way], *([] if way == "proportional" else [*UNLABELLED, texts])]


@pytest.fixture(scope="module")
def runs(words, tmp_path_factory):
    """Folder of a whole run of each way, and the seeds that PCGrad has drawn from in the joint one."""
    folder = tmp_path_factory.mktemp("runs")
    seeds = []
    combine = multitask_classifier.combine_by_pcgrad

    def spy(parameters, of_tasks, seed):
        seeds.append(seed)
        return combine(parameters, of_tasks, seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multitask_classifier, "combine_by_pcgrad", spy)
        statuses = [run_program(*words(way), "--output_dir", folder / way) for way in WAYS]
        assert statuses == [0] * len(WAYS)
    return folder, seeds


def records(folder, kind: str) -> list[dict]:
    """The lines of the log whose kind begins so."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"].startswith(kind)]


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_run_ends_like_one_that_was_not(way, runs, words, main, tmp_path):
    """Guards against a way of mixing that a resumed run takes otherwise: other batches, draws or weights."""
    run_stopped(1, *words(way), "--output_dir", tmp_path / "run")
    assert main("--resume", "--output_dir", tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == outcome(runs[0] / way)


def test_what_a_joint_run_logs(runs):
    """Guards against tasks that are missing in the log, conflicts that nobody sees, a loss without labels,
    and PCGrad that takes the tasks in one order in every step: the same task would win each time."""
    folder, seeds = runs
    assert len(set(seeds)) == len(seeds) == 10
    found = records(folder / "joint", "train/")
    kinds = {f"train/{task}" for task in ("sst", "para", "sts", "unlabelled")}
    assert {record["kind"] for record in found} == kinds
    assert all(0 <= record["conflict"] <= 1 for record in found)
    bare = records(folder / "joint", "train/unlabelled")
    assert all("task" not in record and record["smart"] >= 0 for record in bare)


def test_an_annealed_run_is_not_resumed_with_other_texts_or_more_epochs(runs, main, texts, capsys):
    """Guards against a run that goes on with other texts or other batches than those it has counted."""
    run = ["--resume", "--output_dir", runs[0] / "annealed"]
    assert main(*run, "--epochs=4") == 2
    assert "--epochs 4: with --schedule annealed" in capsys.readouterr().err
    content = texts.read_bytes()
    texts.write_text("another text\n")
    assert main(*run) == 2
    texts.write_bytes(content)
    assert "--unlabelled_file: its content is not what the run" in capsys.readouterr().err


def test_the_loss_without_labels_by_hand():
    """Guards against weights of another task, and terms that need labels. Expected: 2 R_s + 3 D_Breg, each as
    the same rows have it with labels."""
    model = tiny_model().eval()
    settings = {"tasks": ("sst",), "use_smart": True, "rdrop_weight": 1.0, "precision": "fp32"}
    settings |= {"smart_weight": {"sst": 2.0}, "bregman_weight": {"sst": 3.0}}
    config = TrainConfig(**settings, unlabelled_file="x")
    teacher = BregmanProximal(tiny_model(seed=1).eval())
    batch = tiny_batch("sst")
    labelled = training_loss(model, TASKS["sst"], batch, config, teacher)
    bare = training_loss(model, TASKS["sst"], dataclasses.replace(batch, labels=None), config, teacher)
    assert set(bare) == {"smart", "bregman", "total"}
    assert bare["smart"] == labelled["smart"] and bare["bregman"] == labelled["bregman"]
    assert bare["total"].item() == pytest.approx(2 * bare["smart"].item() + 3 * bare["bregman"].item())
