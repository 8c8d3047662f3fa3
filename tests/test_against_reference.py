"""Whole runs against references: a trainer written from the paper, and given dev scores.

The trainer is `reference_trainer.py`, Algorithm 1 on transformers' BERT. It meets our loop, `train`.
The loop brings the plan of the run, the learning rate, β, the loss, the clipping, AdamW and the teacher.
Only dropout is off.
"""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import multitask_classifier
import reference_trainer
from config import TrainConfig
from datasets import Loader, TokenizedDataset
from multitask_classifier import MultitaskBERT, load_model, main, train
from tasks import TASKS
from tiny_bert import TINY, both_berts, tiny_encoder

STEPS = 20
NUM_ROWS = 14  # of a data set: three full batches and one of two rows
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
HEAD_STD = 0.015  # with small outputs and a wide ball, rounding is small beside the effect of δ
SETTINGS = {  # apart from the warm-up none is a default, and no two weights are equal
    "use_smart": True,
    "bregman_beta": "paper",
    "lr": 2e-4,
    "head_lr": 2e-4,
    "weight_decay": 10.0,  # large enough to tell decay after the update from decay before it
    "max_grad_norm": 2.0,
    "smart_weight": {"sst": 0.3, "para": 0.2, "sts": 0.07, "cfimdb": 0.5},
    "bregman_weight": {"sst": 2.0, "para": 4.0, "sts": 0.5, "cfimdb": 3.0},
}
# ε and σ² by the ball's norm. The first noise stays within the ball, where Algorithm 1 does not project it.
BALLS = {
    "inf": {"smart_epsilon": 0.12, "smart_noise_var": 7e-4},
    "2": {"smart_epsilon": 0.3, "smart_noise_var": 1.4e-3},
}
# Tasks in turn, the ball's norm, T, η / ε, and a seed. The ascent leads out of the ball, so projection acts.
# Where the first noise hardly moves a row's outputs, rounding decides the direction of the row's ascent, and
# rounding differs from processor to processor. With these seeds the noise moves every row: with AVX-512, with
# AVX2 and without either the largest error of R_s is a tenth of its bound.
CASES = [
    (("sst",), "2", 2, 0.8, 4),
    (("para",), "inf", 3, 0.6, 1),
    (("sts",), "2", 3, 0.6, 3),
    (("sst", "para", "sts"), "inf", 2, 0.8, 8),
]


def random_dataset(name: str) -> TokenizedDataset:
    """Rows of 4 to 9 random tokens with random labels; a pair's second text begins anywhere."""
    random = np.random.default_rng(len(name))
    lengths = random.integers(4, 10, NUM_ROWS)
    tokens = random.integers(1, TINY.vocab_size, lengths.sum()).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    segment_starts = lengths if name == "sst" else random.integers(1, lengths)
    labels = {"sst": random.integers(0, 5, NUM_ROWS), "sts": random.uniform(0, 2, NUM_ROWS)}
    labels = torch.tensor(labels.get(name, random.integers(0, 2, NUM_ROWS)), dtype=torch.float32)
    ids = [f"row{i}" for i in range(NUM_ROWS)]
    texts = [("random tokens",)] * NUM_ROWS
    return TokenizedDataset(TASKS[name], ids, labels, tokens, starts, segment_starts, 0, texts)


def both_models(folder: Path) -> tuple[MultitaskBERT, reference_trainer.Model]:
    """Ours and the reference, with the same random weights, heads of every task included."""
    our_bert, their_bert = both_berts(folder, **NO_DROPOUT)
    ours = MultitaskBERT(our_bert, "mean", 0.0)
    generator = torch.Generator().manual_seed(3)
    width = TINY.hidden_size
    heads = nn.ModuleDict({name: nn.Linear(width, task.num_outputs) for name, task in TASKS.items()})
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.copy_(HEAD_STD * torch.randn(parameter.shape, generator=generator))
    ours.heads.load_state_dict(heads.state_dict())
    return ours, reference_trainer.Model(their_bert, heads)


def train_ours(
    model: MultitaskBERT, config: TrainConfig, folder: Path, tokenizer
) -> tuple[list[dict], MultitaskBERT]:
    """Our run, in two epochs: what it logged of each step, and its teacher from the last checkpoint."""
    data = {(name, split): random_dataset(name) for name in config.tasks for split in ("train", "dev")}
    train(model, data, config, folder, tokenizer, "random tokens")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    teacher = copy.deepcopy(model)
    teacher.load_state_dict(safetensors.torch.load_file(folder / "last" / "teacher.safetensors"))
    return [line for line in lines if line["kind"].startswith("train/")], teacher


def reference_batches(config: TrainConfig) -> list[reference_trainer.Rows]:
    """The batches that our run takes, the tasks in turn, and the noise that it draws for each."""
    seeds = [(config.seed, *name.encode()) for name in config.tasks]
    datasets = [random_dataset(name) for name in config.tasks]
    loaders = [
        Loader(dataset, config.batch_size, seed) for dataset, seed in zip(datasets, seeds, strict=True)
    ]
    batches = []
    for step in range(STEPS):
        turn = step % len(loaders)
        batch = loaders[turn][step // len(loaders)]
        ids = batch.input_ids
        noise = batch.noise(torch.zeros(*ids.shape, TINY.hidden_size))
        types = torch.zeros_like(ids) if batch.token_type_ids is None else batch.token_type_ids
        real = torch.ones_like(ids) if batch.attention_mask is None else batch.attention_mask.long()
        batches.append(reference_trainer.Rows(config.tasks[turn], ids, types, real, batch.labels, noise))
    return batches


def largest_difference(ours: MultitaskBERT, reference: reference_trainer.Model) -> float:
    """Over all weights, heads of every task included."""
    mine = ours.bert.published_weights() | ours.heads.state_dict(prefix="heads.")
    theirs = reference.bert.state_dict() | reference.heads.state_dict(prefix="heads.")
    assert mine.keys() == theirs.keys()
    return max((mine[name] - theirs[name]).abs().max().item() for name in mine)


@pytest.mark.parametrize(
    ("tasks", "p", "ascent_steps", "step_share", "seed"),
    CASES,
    ids=[f"{','.join(case[0])}-{case[1]}" for case in CASES],
)
def test_twenty_steps_are_algorithm_1(tmp_path, tokenizer, tasks, p, ascent_steps, step_share, seed):
    """Guards against a training step with a term, a weight, an order or a schedule that is not the paper's,
    the ascent's gradients in the model's, and a head that decays, or counts a step, on other tasks.

    A run with such a fault still trains, and its scores look plausible.
    """
    config = TrainConfig(
        **SETTINGS,
        **BALLS[p],
        tasks=tasks,
        seed=seed,
        smart_norm=p,
        smart_steps=ascent_steps,
        smart_step_size=step_share * BALLS[p]["smart_epsilon"],
        batch_size=4,
        epochs=2,
        steps_per_epoch=STEPS // 2,
        logging_steps=1,
    )
    ours, reference = both_models(tmp_path / "encoder")
    expected, expected_teacher = reference_trainer.train(reference, reference_batches(config), config)
    logged, teacher = train_ours(ours, config, tmp_path / "run", tokenizer)
    assert [line["kind"] for line in logged] == [f"train/{tasks[step % len(tasks)]}" for step in range(STEPS)]
    for step, (mine, theirs) in enumerate(zip(logged, expected, strict=True)):
        for name in ("task", "total", "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-6, abs=0), (step, name)
        for name, bound in {"smart": 1e-7, "bregman": 2e-8}.items():
            assert mine[name] == pytest.approx(theirs[name], rel=0, abs=bound), (step, name)
        # a token that hardly matters has a gradient that is mostly rounding, so its part of δ is less exact
        assert mine["delta_ratio"] == pytest.approx(theirs["delta_ratio"], rel=1e-3, abs=0), step
        assert mine["lr"] == pytest.approx(theirs["lr"], rel=1e-12, abs=0), step
    assert largest_difference(ours, reference) < 1e-6
    assert largest_difference(teacher, expected_teacher) < 3e-7
    # two runs that agree say nothing of a part that does nothing
    assert min(values["smart"] for values in expected) > 1e-4
    assert max(values["bregman"] for values in expected) > 2e-6
    assert max(values["grad_norm"] for values in expected) > config.max_grad_norm


SCORES = {"student": (0.5, 0.7, 0.6), "teacher": (0.4, 0.6, 0.65)}  # of three epochs


@pytest.mark.parametrize(("keep", "best_epoch", "kept"), [("best", 2, "student"), ("teacher", 3, "teacher")])
def test_the_kept_model_is_that_of_its_epoch_and_role(tmp_path, monkeypatch, keep, best_epoch, kept):
    """Guards against a run that reports one model's score and keeps another's weights."""
    seen = {"student": [], "teacher": []}  # weights when they were scored
    evaluate = multitask_classifier.evaluate

    def evaluate_as_given(model, *arguments, **named):
        role = "student" if next(model.parameters()).requires_grad else "teacher"
        score = SCORES[role][len(seen[role])]
        seen[role].append(copy.deepcopy(model.state_dict()))
        given = {"scores": {"sst": {"accuracy": score, "macro_f1": 0.0}}, "dev_mean": score}
        return evaluate(model, *arguments, **named)._replace(**given, selection_mean=score)

    monkeypatch.setattr(multitask_classifier, "evaluate", evaluate_as_given)
    folder = tmp_path / "run"
    flags = ["--tasks=sst", "--use_smart", f"--keep={keep}", "--epochs=3", "--steps_per_epoch=3"]
    flags += ["--bregman_beta=0.9", "--lr=0.003"]  # so that the teacher is not the student
    flags += ["--max_train_samples=16", "--max_eval_samples=8", "--batch_size=4", "--no_report"]
    places = ["--model_name_or_path", tiny_encoder(tmp_path / "encoder"), "--output_dir", str(folder)]
    assert main([*flags, *places]) == 0
    given = {role: scores[best_epoch - 1] for role, scores in SCORES.items()}
    model, _, record = load_model(folder / "best")
    for said in (json.loads((folder / "results.json").read_text()), record):
        assert said["best_step"] == 3 * best_epoch and said["kept"] == kept
        assert said["dev_mean"] == said["dev"]["sst"]["accuracy"] == given[kept]
        assert {role: said[f"dev_{role}"]["sst"]["accuracy"] for role in given} == given
    heads = [weights["heads.sst.weight"] for weights in (*seen["student"], *seen["teacher"])]
    assert len(heads) == 6 and sum(torch.equal(head, model.heads["sst"].weight) for head in heads) == 1
    (other,) = {"student", "teacher"} - {kept}
    beside = safetensors.torch.load_file(folder / "best" / f"{other}.safetensors")
    for role, weights in ((kept, model.state_dict()), (other, beside)):
        expected = seen[role][best_epoch - 1]
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in weights)
