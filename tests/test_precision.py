"""bf16 and fp16: what they may not touch, and where bf16 is too coarse for SMART."""

import json

import pytest
import torch

import mysmartloss
from base_bert import load_tokenizer
from bert import BertModel
from config import TrainConfig
from helpers import sample_batch, warnings_of
from kill_and_resume import SIZE
from multitask_classifier import MultitaskBERT, training_loss
from mysmartloss import BregmanProximal
from optimizer import AdamW
from support.devices import COMPUTE_TYPES
from support.messages import warn_of_rounding
from tasks import TASKS
from tiny_bert import tiny_batch, tiny_model


def test_the_gradient_norm_of_fp16_is_that_of_fp32(main, tmp_path):
    """Guards against a norm taken before the loss scale is divided out: with 65,536 times the norm every step
    is clipped to almost nothing. Reference: the same run in fp32."""
    norms = {}
    for precision in ("fp32", "fp16"):
        flags = [*SIZE, "--epochs=1", "--steps_per_epoch=6", "--logging_steps=1", "--no_report"]
        assert main(*flags, "--precision", precision, "--output_dir", tmp_path / precision) == 0
        records = map(json.loads, (tmp_path / precision / "metrics.jsonl").read_text().splitlines())
        norms[precision] = [record["grad_norm"] for record in records if "grad_norm" in record]
    assert len(norms["fp32"]) == 6 and norms["fp16"] == pytest.approx(norms["fp32"], rel=0.02)


def test_a_step_in_bf16_leaves_the_rest_in_fp32(monkeypatch):
    """Guards against weights, moments, δ, sentence vectors or a teacher that are rounded to three digits."""
    model = tiny_model(precision="bf16")
    bregman = BregmanProximal(model)
    types = {}
    model.dropout.register_forward_hook(lambda module, inputs, output: types.update(vector=inputs[0].dtype))
    perturbation = mysmartloss.SMARTLoss.perturbation

    def spy(self, embed, state, mask=None):
        delta = perturbation(self, embed, state, mask)
        types.update(embeddings=embed.dtype, logits=state.dtype, delta=delta.dtype)
        return delta

    monkeypatch.setattr(mysmartloss.SMARTLoss, "perturbation", spy)
    config = TrainConfig(use_smart=True, rdrop_weight=1.0, precision="bf16")
    losses = training_loss(model, TASKS["sst"], tiny_batch("sst"), config, bregman)
    losses["total"].backward()
    optimizer = AdamW(model.parameters())
    optimizer.step()
    bregman.update(model, 0.9)
    assert types.keys() == {"vector", "embeddings", "logits", "delta"}
    moments = [state["exp_avg_sq"] for state in optimizer.state.values()]
    tensors = [*model.parameters(), *bregman.teacher.parameters(), *losses.values(), *moments]
    assert {*types.values(), *(tensor.dtype for tensor in tensors)} == {torch.float32}


@pytest.fixture(scope="module")
def minilm() -> MultitaskBERT:
    """MiniLM with heads of a size that training gives them."""
    model = MultitaskBERT(BertModel.from_pretrained()).eval()
    with torch.no_grad():
        for head in model.heads.values():
            head.weight.mul_(5)
    return model


@pytest.mark.parametrize("task", ["para", "sts"])
def test_the_ascent_in_bf16_finds_a_direction_as_adversarial(minilm, task):
    """Guards against an ascent that bf16 blinds: its δ, scored in fp32, must reach .8 of what fp32 finds."""
    batch = sample_batch(task, load_tokenizer(), rows=8)
    found = {}
    for precision in ("fp32", "bf16"):
        minilm.compute_type = COMPUTE_TYPES[precision]
        smart = mysmartloss.SMARTLoss(
            lambda embeddings: minilm.logits(task, embeddings, batch.attention_mask),
            TASKS[task].divergence,
            noise_fn=batch.noise,
        )
        with torch.no_grad():
            embeddings = minilm.bert.embed(batch.input_ids, batch.token_type_ids)
            logits = smart.eval_fn(embeddings)
        delta = smart.perturbation(embeddings, logits, batch.attention_mask)
        assert delta.abs().max() <= 0.01
        minilm.compute_type = None
        with torch.no_grad():
            found[precision] = smart.at(delta, embeddings, smart.eval_fn(embeddings)).item()
    assert found["bf16"] >= 0.8 * found["fp32"] > 1e-5


def losses_of(minilm: MultitaskBERT, precision: str, epsilon: float) -> dict[str, torch.Tensor]:
    minilm.compute_type = COMPUTE_TYPES[precision]
    settings = {"smart_epsilon": epsilon, "smart_step_size": epsilon, "smart_noise_var": epsilon**2 / 10}
    config = TrainConfig(use_smart=True, bregman_weight=0.0, precision=precision, **settings)
    batch = sample_batch("sst", load_tokenizer(), rows=16)
    return training_loss(minilm, TASKS["sst"], batch, config, measure=True)


def test_the_floor_of_bf16_is_measured(minilm, caplog):
    """Guards against SMART in bf16 with an ε whose effect is rounding alone, and nobody says so."""
    wide = losses_of(minilm, "bf16", 0.02)
    small = losses_of(minilm, "bf16", 1e-4)
    assert 1e-7 < wide["smart_floor"] < 1e-4 and small["smart"] < 3 * small["smart_floor"] < wide["smart"]
    for losses in (wide, small):
        warn_of_rounding({"sst": {name: value.item() for name, value in losses.items()}}, "bf16")
    (said,) = warnings_of(caplog)
    assert "--smart_epsilon is too small" in said and "R_s on sst" in said
