"""Whole runs with each way to mix tasks, and with texts without labels."""

import dataclasses
import json
import shutil

import pytest

import checkpoint
import multitask_classifier
from config import TrainConfig
from helpers import SAMPLE
from kill_and_resume import outcome
from multitask_classifier import training_loss
from mysmartloss import BregmanProximal
from support.errors import UserError
from tasks import TASKS
from tiny_bert import tiny_batch, tiny_model

SHORT = ["--max_train_samples=24", "--max_eval_samples=12", "--batch_size=4", "--epochs=2"]
SHORT += ["--logging_steps=2", "--no_report", "--max_length=64"]
SST_TEST = SAMPLE / TASKS["sst"].filename("test")
OF_SST = ["--use_smart", "--unlabelled_task=sst"]
UNLABELLED = [*OF_SST, "--unlabelled_file", SST_TEST]
FREELB = ["--use_smart", "--adversary=freelb", "--smart_steps=2"]
WAYS = {
    "annealed": ["--schedule=annealed", "--steps_per_epoch=6", *UNLABELLED],
    "joint": ["--schedule=joint", "--steps_per_epoch=3", "--task_weights=sst=1,para=0.5", *UNLABELLED],
    "pcgrad": ["--schedule=joint", "--steps_per_epoch=3", "--gradient_surgery=pcgrad", "--max_tokens=128"],
    "cosine": ["--steps_per_epoch=6", "--similarity=cosine", "--contrastive_weight=0.1", "--keep=teacher"],
    "freelb": ["--schedule=proportional", "--steps_per_epoch=6", *FREELB],
    "trainer": ["--steps_per_epoch=6", "--head_lr=1e-2", "--layer_lr_decay=.8", "--eval_steps=5"],
}
WAYS["trainer"] += ["--patience=9", "--gradient_accumulation_steps=2", "--rdrop_weight=.5"]


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("way", WAYS)
def test_a_stopped_run_ends_like_one_that_was_not(way, main, tmp_path):
    """Guards against a way of mixing that a resumed run takes otherwise: other batches, draws or weights."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    steps = [*SHORT, *WAYS[way], "--save_steps=1"]
    assert main(*steps, "--output_dir", whole) == 0
    with pytest.MonkeyPatch.context() as patch:
        save = checkpoint.save_last

        def save_and_stop(*arguments):
            save(*arguments)
            progress = arguments[-1]
            if progress.step == 4:
                raise checkpoint.Interrupted(15)

        patch.setattr(checkpoint, "save_last", save_and_stop)
        assert main(*steps, "--output_dir", stopped) == 143
    assert main("--resume", "--output_dir", stopped) == 0
    assert outcome(stopped) == outcome(whole)
    kinds = {record["kind"] for record in records(whole)}
    assert kinds >= {"dev/sst", "dev/para", "dev/sts"}


def test_what_a_joint_run_logs(main, tmp_path, monkeypatch):
    """Guards against tasks that are missing in the log, conflicts that nobody sees, and PCGrad that takes the
    tasks in one order in every step: the same task would win each time."""
    seeds = []
    combine = multitask_classifier.combine_by_pcgrad

    def spy(parameters, of_tasks, seed):
        seeds.append(seed)
        return combine(parameters, of_tasks, seed)

    monkeypatch.setattr(multitask_classifier, "combine_by_pcgrad", spy)
    assert main(*SHORT, *WAYS["pcgrad"], "--output_dir", tmp_path / "run") == 0
    assert len(set(seeds)) == len(seeds) == 6
    found = [record for record in records(tmp_path / "run") if record["kind"].startswith("train/")]
    assert {record["kind"] for record in found} == {"train/sst", "train/para", "train/sts"}
    assert all(0 <= record["conflict"] <= 1 for record in found)


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


def test_an_annealed_run_is_not_resumed_with_other_texts_or_more_epochs(main, tmp_path, capsys):
    """Guards against a run that goes on with other texts or other batches than those it has counted, and
    a loss against labels that do not exist."""
    texts = tmp_path / "texts.csv"
    shutil.copy(SST_TEST, texts)
    steps = [*SHORT, *WAYS["annealed"], "--output_dir", tmp_path / "run"]
    steps[steps.index(SST_TEST)] = texts
    assert main(*steps) == 0
    found = [record for record in records(tmp_path / "run") if record["kind"] == "train/unlabelled"]
    assert found and all("task" not in record and record["smart"] >= 0 for record in found)
    assert main("--resume", "--epochs=4", "--output_dir", tmp_path / "run") == 2
    assert "--epochs 4: with --schedule annealed" in capsys.readouterr().err
    texts.write_text("another text\n")
    assert main("--resume", "--output_dir", tmp_path / "run") == 2
    assert "--unlabelled_file: its content is not what the run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"unlabelled_task": "sst"}, ["--unlabelled_task sst", "--unlabelled_file"]),
        ({"unlabelled_file": "x", "unlabelled_task": "cfimdb"}, ["--unlabelled_task cfimdb", "--tasks"]),
        ({"unlabelled_file": "x", "unlabelled_task": "sst"}, ["--unlabelled_file", "--use_smart"]),
        ({"similarity": "cosine", "tasks": ("sst",)}, ["--similarity cosine", "--tasks"]),
        ({"contrastive_weight": {"sst": 1.0}}, ["--contrastive_weight sst=1", "sst"]),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(settings, said):
    """Guards against a flag that is silently without effect."""
    with pytest.raises(UserError) as caught:
        TrainConfig(**settings)
    assert all(part in str(caught.value) for part in said)


def test_a_cap_that_cannot_do_is_one_line(main, tmp_path, capsys):
    """Guards against a traceback, and against a folder half-written."""
    assert main(*SHORT, "--max_tokens=8", "--output_dir", tmp_path / "run") == 2
    complained = capsys.readouterr().err
    assert "--max_tokens 8: a row of " in complained and complained.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()
