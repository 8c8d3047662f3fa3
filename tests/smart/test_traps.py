"""Traps of the functions underneath `SMART` that nothing named: each is loud now, or cannot happen."""

import pytest
import torch
import transformers
from torch import Tensor, nn

import mysmartloss
from any_models import hf, text_batch
from mysmartloss import SMARTLoss, logits_of, sym_kl_loss


def test_a_replay_for_the_whole_training_is_an_error():
    """Guards against smart-pytorch's idiom, a function made once before the loop: every step would have the
    masks of the first one, and no dropout is left to regularise."""
    dropout, layer = nn.Dropout(0.5), nn.Linear(8, 3)
    encode = mysmartloss.DropoutReplay(lambda x: layer(dropout(x)).mean(1))
    smart = SMARTLoss(encode, sym_kl_loss)
    embeddings = torch.randn(2, 4, 8)
    logits = encode(embeddings)
    (logits.square().mean() + smart(embeddings, logits)).backward()
    with pytest.raises(RuntimeError, match="again after backward.*a new DropoutReplay in each step"):
        encode(embeddings)


def test_the_functions_underneath_unwrap_outputs():
    """Guards against an object of transformers in place of logits, and the traceback of softmax about it."""
    model, batch = hf("bert"), text_batch()
    hidden = model.bert.embeddings(batch["input_ids"])

    def outputs(x: Tensor):
        head = model.classifier(model.bert.encoder(x).last_hidden_state[:, 0])
        return transformers.modeling_outputs.SequenceClassifierOutput(logits=head)

    encode = mysmartloss.DropoutReplay(outputs)
    state = encode(hidden)
    assert isinstance(state, Tensor)
    smart = SMARTLoss(outputs, sym_kl_loss)
    assert smart(hidden.detach(), outputs(hidden)) > 0
    teacher = mysmartloss.BregmanProximal(model)
    value = teacher(state, lambda teacher: teacher(**batch), sym_kl_loss, None)
    assert value.isfinite()
    loss = torch.tensor(1.0)
    for wrapped_up in ({"logits": state}, (loss, state), [state], state):
        assert logits_of(wrapped_up) is state
    with pytest.raises(TypeError, match="no logits in a model's output of type BaseModelOutput"):
        logits_of(transformers.modeling_outputs.BaseModelOutput(last_hidden_state=hidden))


def test_the_ratio_does_not_count_tokens_without_a_length():
    """Guards against NaN in the log: DeBERTa and padding_idx have zeros on padding."""
    embeddings = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    delta = torch.tensor([[[0.0, 0.5], [0.0, 0.0]]])
    assert mysmartloss.delta_ratio(delta, embeddings).item() == pytest.approx(0.1)
    assert mysmartloss.delta_ratio(delta + 0.5, embeddings).isfinite()
