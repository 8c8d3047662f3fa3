"""`SMART` on transformers' BERT beside our own trainer: the same weights, batch, teacher and noise."""

import pytest
import torch
import transformers

from bert import BertModel
from config import TrainConfig
from multitask_classifier import MultitaskBERT, training_loss
from mysmartloss import SMART, BregmanProximal
from tasks import TASKS
from tiny_bert import SIZES, TINY, tiny_batch

SMART_TASKS = {"sst": "classification", "para": "binary", "sts": "regression"}


def both_models(task: str) -> tuple[MultitaskBERT, transformers.BertForSequenceClassification]:
    """Ours with the pooler, and transformers' own with our weights. Both in train mode, without dropout."""
    torch.manual_seed(0)
    model = MultitaskBERT(BertModel(TINY), pooling="cls", hidden_dropout_prob=0.0, tasks=[task]).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))  # biases too
    settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    for module in model.bert.modules():
        for name in ("p", "dropout_prob"):
            if hasattr(module, name):
                setattr(module, name, 0.0)
    config = transformers.BertConfig(**SIZES, **settings, num_labels=TASKS[task].num_outputs)
    theirs = transformers.BertForSequenceClassification(config).train()
    theirs.bert.load_state_dict(model.bert.published_weights(), strict=False)
    theirs.classifier.load_state_dict(model.heads[task].state_dict())
    return model, theirs


@pytest.mark.parametrize(("task", "steps"), [("sst", 2), ("para", 1), ("sts", 2)])
def test_the_terms_are_those_of_our_trainer(task, steps):
    """Guards against two regularisers of one name: what `SMART` adds to another model's loss is what our own
    training minimises, in value and in its gradient."""
    model, theirs = both_models(task)
    batch = tiny_batch(task)
    bregman = BregmanProximal(model)
    smart = SMART(theirs, SMART_TASKS[task], epsilon=0.04, num_steps=steps, noise_fn=batch.noise)
    with torch.no_grad():  # away from the teacher
        for parameter in (*model.parameters(), *theirs.parameters()):
            parameter.mul_(1.05)
    settings = {"smart_epsilon": 0.04, "smart_step_size": 0.04, "smart_steps": steps}
    config = TrainConfig(use_smart=True, smart_weight=1.0, bregman_weight=1.0, **settings)
    ours = training_loss(model, TASKS[task], batch, config, bregman, measure=True)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask.long()}
    logits = theirs(**inputs).logits
    with pytest.warns(UserWarning, match="D_Breg of the first batch"):  # the weights were moved on purpose
        value = smart(inputs)
    assert smart.last["smart"].item() == pytest.approx(ours["smart"].item(), abs=1e-6)
    assert smart.last["bregman"].item() == pytest.approx(ours["bregman"].item(), abs=1e-6)
    assert smart.last["delta_ratio"].item() == pytest.approx(ours["delta_ratio"].item(), rel=1e-3)
    assert ours["smart"] > 1e-4 and ours["bregman"] > 1e-4
    (TASKS[task].loss(logits, batch.labels) + value).backward()
    ours["total"].backward()
    pairs = [
        (theirs.classifier.weight, model.heads[task].weight),
        (theirs.bert.embeddings.word_embeddings.weight, model.bert.word_embedding.weight),
    ]
    for found, expected in pairs:
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)
