"""The model with its heads and its training loss."""

import statistics

import pytest
import torch
import torch.nn.functional as F

from bert import BertModel
from config import TrainConfig
from multitask_classifier import MultitaskBERT, training_loss
from mysmartloss import BregmanProximal
from optimizer import AdamW, clip_gradients, step_if_finite
from support.devices import COMPUTE_TYPES, start_watch
from support.progress import Progress
from tasks import TASKS
from tiny_bert import TINY, tiny_batch, tiny_model


def losses_of(model: MultitaskBERT, task: str, **settings) -> dict[str, torch.Tensor]:
    """`training_loss` of the tiny batch, with a seeded generator and a teacher unlike the model."""
    bregman = BregmanProximal(model)
    with torch.no_grad():
        for parameter in bregman.teacher.parameters():
            parameter.mul_(0.9)
    torch.manual_seed(5)
    device = next(model.parameters()).device.type
    return training_loss(model, TASKS[task], tiny_batch(task, device), TrainConfig(**settings), bregman)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize(
    ("method", "task", "outputs"),
    [("sentiment", "sst", 5), ("paraphrase", "para", 1), ("similarity", "sts", 1)],
)
def test_predict_methods_use_their_heads(method, task, outputs, pooling):
    """Guards against a head wired to the wrong task, padding in the sentence vector, with which scores depend
    on the longest row of a batch, and a [CLS] state without BERT's trained pooler."""
    model = tiny_model(pooling=pooling).eval()
    batch = tiny_batch(task)
    logits = getattr(model, f"predict_{method}")(batch.input_ids, batch.attention_mask)
    assert logits.shape == (4, outputs)
    hidden, pooled = model.bert(batch.input_ids, batch.attention_mask).values()
    if pooling == "mean":
        rows = zip(hidden, batch.attention_mask, strict=True)
        pooled = torch.stack([row[real].mean(0) for row, real in rows])
    torch.testing.assert_close(logits, model.heads[task](pooled))


OFF = {"use_smart": True, "smart_weight": 0.0, "bregman_weight": {"sst": 0.0}}


@pytest.mark.parametrize(("settings", "name"), [({"use_smart": True}, "task"), (OFF, "total")])
def test_smart_changes_neither_the_task_loss_nor_the_rng(settings, name):
    """Guards against later dropout masks that depend on whether SMART is on, and embeddings computed twice
    under different dropout: two such runs could not be compared. A term that is off changes no gradient."""
    results = []
    for given in ({}, settings):
        model = tiny_model()
        loss = losses_of(model, "sst", **given)[name]
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        results.append([loss, *gradients, torch.get_rng_state()])
    assert all(torch.equal(plain, other) for plain, other in zip(*results, strict=True))


@pytest.mark.parametrize("task", ["para", "sts"])
def test_a_step_on_the_meta_device(task):
    """Guards against tensors made on the wrong device,
    and against waiting for the device in every step. Only a GPU would show either."""
    with torch.device("meta"):
        model = MultitaskBERT(BertModel(TINY)).train()
    config = TrainConfig(use_smart=True, smart_steps=2, rdrop_weight=1.0)
    teacher = BregmanProximal(model)
    optimizer = AdamW(model.parameters())
    progress = Progress()
    batch = tiny_batch(task, "meta")
    for measure in (True, False):  # `.item()` raises on meta, so nothing can wait for a number
        stop_watch = start_watch(torch.device("meta"))
        losses = training_loss(model, TASKS[task], batch, config, teacher, measure)
        losses["total"].backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        clip_gradients(optimizer, norm, 1.0)
        assert step_if_finite(optimizer, torch.isfinite(norm))
        teacher.update(model, 0.9)
        progress.add([task], [losses | {"grad_norm": norm}], [batch], stop_watch())
    assert {loss.device.type for loss in losses.values()} == {"meta"}
    assert {"smart", "bregman", "rdrop"} <= losses.keys()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_narrow_compute_types_leave_embeddings_and_heads_in_fp32(precision):
    """Guards against perturbations below the resolution of bf16, and against scores rounded to bf16."""
    model = tiny_model().eval()
    batch = tiny_batch("sts")
    seen = {}
    dense = "bert.bert_layers.0.interm_dense"
    head = "heads.sts"
    for name in (dense, head):
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output.dtype})
        )
    exact = model("sts", *batch.inputs)
    model.compute_type = COMPUTE_TYPES[precision]
    embeddings = model.bert.embed(batch.input_ids)
    logits = model.logits("sts", embeddings, batch.attention_mask)
    assert embeddings.dtype == torch.float32
    assert seen == {dense: model.compute_type, head: torch.float32}
    torch.testing.assert_close(logits, exact, rtol=0.02, atol=0.02)
    assert not torch.equal(logits, exact)


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
@pytest.mark.parametrize(
    ("precision", "norm"), [("fp32", "inf"), ("fp32", "2"), ("bf16", "inf"), ("fp16", "inf")]
)
def test_the_ascent_finds_more_than_noise_of_its_size(task, precision, norm):
    """Guards against an inert ascent: in smart-pytorch the final δ points along the first noise, and fp16
    rounds a gradient of about 1e-7 to 0."""
    model = tiny_model(precision=precision)
    settings = {"smart_epsilon": 0.1, "smart_step_size": 0.1, "smart_norm": norm, "bregman_weight": 0.0}
    config = TrainConfig(use_smart=True, **settings)
    torch.manual_seed(0)
    losses = training_loss(model, TASKS[task], tiny_batch(task), config, measure=True)
    assert losses["ascent_gain"] > 2 and losses["delta_ratio"] > 0.003
    assert losses["smart"].item() == losses["ascent_divergence"].item()


@pytest.mark.parametrize("task", ["sst", "para"])
def test_rdrop_is_the_papers(task):
    """Guards against a second pass that pays no task loss, a divergence with the clean side detached, and
    twice its weight. Expected: CE(p) + CE(q) + α ½ (KL(p‖q) + KL(q‖p)), Wu et al. 2021."""
    record = TASKS[task]
    batch = tiny_batch(task)
    model = tiny_model()
    torch.manual_seed(3)
    losses = training_loss(model, record, batch, TrainConfig(rdrop_weight=0.7))
    losses["total"].backward()
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    torch.manual_seed(3)
    outputs = [model(task, *batch.inputs) for _ in range(2)]
    logs = [F.log_softmax(x if task == "sst" else F.pad(x, (1, 0)), -1) for x in outputs]
    kl = sum((a.exp() * (a - b)).sum(-1).mean() for a, b in (logs, logs[::-1]))
    expected = sum(F.nll_loss(log, batch.labels.long()) for log in logs) + 0.7 * 0.5 * kl
    assert losses["total"].item() == pytest.approx(expected.item(), rel=1e-5)
    mean = statistics.fmean(F.nll_loss(log, batch.labels.long()).item() for log in logs)
    assert losses["task"].item() == pytest.approx(mean, rel=1e-5), "a curve beside those of other runs"
    expected.backward()
    for mine, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-6)
