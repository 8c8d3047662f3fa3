"""Dropout replay and Algorithm 1 against closed forms and finite differences."""

import math

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import mysmartloss
from config import TrainConfig
from mysmartloss import (
    DropoutReplay,
    SMARTLoss,
    bernoulli_sym_kl_loss,
    delta_ratio,
    inf_norm,
    js_loss,
    l2_norm,
    logits_of,
    squared_error,
    sym_kl_loss,
)
from toys import toy

# ----------------------------------------------------------------------------------- dropout replay


def test_replay_draws_the_same_masks_and_restores_the_generator():
    """Guards against an adversarial pass with other masks than the clean one, which is mostly R-Drop,
    and against SMART changing the random numbers of the rest of the run."""
    dropout = nn.Dropout(0.5)
    x = torch.ones(4, 50)
    torch.manual_seed(3)
    bare = dropout(x)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    replay = DropoutReplay(dropout)
    assert torch.equal(replay(x), bare)
    torch.rand(10)  # whatever else draws in between
    torch.manual_seed(3)
    dropout(x)
    for _ in range(2):
        assert torch.equal(replay(x), bare)
        assert torch.equal(torch.get_rng_state(), after)


def test_a_replay_for_the_whole_training_is_an_error():
    """Guards against smart-pytorch's idiom, a function made once before the loop: every step would have the
    masks of the first one, and no dropout is left to regularise."""
    dropout, layer = nn.Dropout(0.5), nn.Linear(8, 3)
    encode = DropoutReplay(lambda x: layer(dropout(x)).mean(1))
    smart = SMARTLoss(encode, sym_kl_loss)
    embeddings = torch.randn(2, 4, 8)
    logits = encode(embeddings)
    (logits.square().mean() + smart(embeddings, logits)).backward()
    with pytest.raises(RuntimeError, match="again after backward.*a new DropoutReplay in each step"):
        encode(embeddings)


@pytest.mark.parametrize("device", ["cuda:1", "mps:0"])
def test_the_rng_is_that_of_the_tensors_device(monkeypatch, device):
    """Guards against dropout that is not replayed, and nobody says so, on cuda:1 while cuda:0 is current, and
    against an argument that MPS's functions lack."""
    states = {"cuda:0": 0, "cuda:1": 1, "mps:0": 2}
    current = ["mps:0" if device == "mps:0" else "cuda:0"]

    def place(given: tuple) -> str:
        assert not given or device != "mps:0"
        return str(*given or current)

    class Fake:
        get_rng_state = staticmethod(lambda *given: states[place(given)])
        set_rng_state = staticmethod(lambda state, *given: states.update({place(given): state}))

    monkeypatch.setattr(torch, "get_device_module", lambda device: Fake)
    before = dict(states)
    with mysmartloss.generator_at(torch.device(device), 7):
        assert states == before | {device: 7}
    assert states == before


def test_logits_of_what_models_return():
    """Guards against an object of transformers in place of logits, and the traceback of softmax about it."""
    logits, loss = torch.randn(2, 3), torch.tensor(1.0)
    of_transformers = transformers.modeling_outputs.SequenceClassifierOutput(loss=loss, logits=logits)
    for output in (logits, of_transformers, {"logits": logits}, (loss, logits), [logits]):
        assert logits_of(output) is logits
    with pytest.raises(TypeError, match="no logits in a model's output of type BaseModelOutput"):
        logits_of(transformers.modeling_outputs.BaseModelOutput(last_hidden_state=logits))


# --------------------------------------------------------------------------------------- Algorithm 1


@pytest.mark.parametrize(
    ("output", "scaled"),
    [
        (5e-8, 1e-7 * 2**16),  # the largest factor
        (4.0, 8.0 * 2**7),  # 1024 / 8
        (50.0, 100.0 * 2**3),  # 1024 / 100 is 10.24, and 8 the power of 2 below it
        (512.0, 1024.0),
        (5120.0, 10240.0 / 2**4),
    ],
)
def test_the_scale_of_the_ascent_by_hand(output, scaled):
    """Guards against a gradient that is rounded to 0 in fp16, and one that a large head carries beyond it.

    For f(x) = x and ℓ_s = f² the gradient at the output is twice the output. Its factor is a power of 2, at
    most 2^16, and keeps it at 1,024 or less.
    """
    delta = torch.full((1, 1, 1), output, requires_grad=True)
    gradient = mysmartloss.ascent_gradient(delta[:, :, 0], torch.zeros(1, 1), delta, squared_error)
    assert gradient.item() == pytest.approx(scaled, rel=1e-6)


def test_an_overflow_leaves_its_part_of_delta_as_it_is():
    """Guards against an infinite gradient that becomes a step in a direction that nobody computed."""
    delta = torch.ones(1, 1, 4, requires_grad=True)
    overflowed = torch.tensor([[[math.nan, math.inf, -math.inf, 2.0]]])
    inside = delta * 1
    inside.register_hook(lambda gradient: overflowed)
    logits = inside.sum((1, 2))[:, None]
    gradient = mysmartloss.ascent_gradient(logits, torch.zeros(1, 1), delta, squared_error)
    assert gradient.tolist() == [[[0.0, 0.0, 0.0, 2.0]]]


@pytest.mark.parametrize("norm_fn", [inf_norm, l2_norm])
@pytest.mark.parametrize(
    ("loss_fn", "outputs"), [(sym_kl_loss, 3), (bernoulli_sym_kl_loss, 1), (squared_error, 1)]
)
def test_ascent_direction_by_finite_differences(norm_fn, loss_fn, outputs):
    """Guards against an ascent along anything but the divergence's gradient, normalised token by token."""
    _, eval_fn, embed = toy(outputs)
    clean = eval_fn(embed).detach()
    settings = {"norm_fn": norm_fn, "epsilon": 100.0, "noise_var": 1e-2, "step_size": 0.7}
    torch.manual_seed(1)
    start = SMARTLoss(eval_fn, loss_fn, num_steps=0, **settings).perturbation(embed, clean)
    torch.manual_seed(1)
    end = SMARTLoss(eval_fn, loss_fn, num_steps=1, **settings).perturbation(embed, clean)
    gradient = torch.zeros_like(start)
    h = 1e-6
    for place in np.ndindex(*start.shape):
        bump = torch.zeros_like(start)
        bump[place] = h
        with torch.no_grad():
            above = loss_fn(eval_fn(embed + start + bump), clean)
            below = loss_fn(eval_fn(embed + start - bump), clean)
            gradient[place] = (above - below) / (2 * h)
    torch.testing.assert_close(end - start, 0.7 * gradient / norm_fn(gradient), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("norm_fn", "dual"), [(inf_norm, 1), (l2_norm, 2)])
def test_ascent_reaches_the_worst_case_of_a_quadratic(norm_fn, dual):
    """Guards against an inert ascent.

    For f(x) = a·x the worst (a·δ)² in the ball is (ε ‖a‖_dual)². The ascent must reach 95 % of it."""
    torch.manual_seed(0)
    a = torch.randn(32)
    embed = torch.randn(5, 1, 32)
    settings = {"norm_fn": norm_fn, "epsilon": 0.03}
    smart = SMARTLoss(lambda x: x @ a, squared_error, step_size=0.03, num_steps=20, **settings)
    state = embed @ a
    reached = smart(embed, state).item()
    worst = (0.03 * torch.linalg.vector_norm(a, dual).item()) ** 2
    assert 0.95 * worst <= reached <= worst * (1 + 1e-5)
    noise_only = SMARTLoss(lambda x: x @ a, squared_error, num_steps=0, noise_var=0.03**2, **settings)
    assert noise_only(embed, state).item() < 0.5 * worst


@pytest.mark.parametrize("norm_fn", [inf_norm, l2_norm])
@pytest.mark.parametrize("epsilon", [1e-5, 0.03, 1.0])
@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_delta_stays_in_the_ball_and_off_the_padding(norm_fn, epsilon, num_steps):
    """Guards against perturbed padding, and against noise rescaled to norm 1:
    in smart-pytorch it is 5.5 times the embedding."""
    _, eval_fn, embed = toy(dtype=torch.float32)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    settings = {"norm_fn": norm_fn, "epsilon": epsilon, "step_size": 10 * epsilon, "noise_var": 1.0}
    smart = SMARTLoss(eval_fn, sym_kl_loss, num_steps=num_steps, **settings)
    delta = smart.perturbation(embed, eval_fn(embed), mask)
    assert (norm_fn(delta) <= epsilon).all() and (norm_fn(delta)[mask.bool()] > 0.5 * epsilon).all()
    assert (delta[~mask.bool()] == 0).all()


def test_delta_is_fp32_for_bf16_embeddings():
    """Guards against ±ε lost below the resolution of bf16."""
    mixing, eval_fn, embed = toy(dtype=torch.float32)
    embed = embed.bfloat16()
    smart = SMARTLoss(lambda x: eval_fn(x.float()), sym_kl_loss, epsilon=1e-4, step_size=1e-4)
    delta = smart.perturbation(embed, eval_fn(embed.float()))
    assert delta.dtype == torch.float32 and delta.abs().max() > 5e-5
    seen = []
    spying = SMARTLoss(lambda x: seen.append(x) or eval_fn(x), sym_kl_loss, epsilon=1e-4)
    spying(embed, eval_fn(embed.float()))
    assert all(x.dtype == torch.float32 for x in seen)


@pytest.mark.parametrize("made_there", [False, True])
def test_inference_mode_is_one_clear_sentence_and_no_grad_works(made_there):
    """Guards against autograd's "element 0 of tensors does not require grad", which says nothing of why, and
    against an ascent that fails, or does nothing, when R_s is measured under no_grad."""
    _, encode, embed = toy()
    smart = SMARTLoss(encode, sym_kl_loss, step_size=0.03, epsilon=0.03)
    with torch.no_grad():
        assert smart(embed, encode(embed)) > 0
    with torch.inference_mode():
        clean = encode(embed.clone())
    with torch.inference_mode(not made_there), pytest.raises(RuntimeError, match="^SMARTLoss: .*no_grad"):
        smart(embed, clean)
    with torch.inference_mode():  # no ascent, so no gradient
        assert SMARTLoss(encode, sym_kl_loss, num_steps=0)(embed, clean) >= 0


def test_loss_last_fn_is_returned_and_loss_fn_climbed():
    """Guards against the two losses being swapped."""
    _, eval_fn, embed = toy()
    smart = SMARTLoss(eval_fn, sym_kl_loss, js_loss, num_steps=2)
    torch.manual_seed(0)
    value = smart(embed, eval_fn(embed))
    torch.manual_seed(0)
    delta = SMARTLoss(eval_fn, sym_kl_loss, num_steps=2).perturbation(embed, eval_fn(embed))
    assert value.item() == js_loss(eval_fn(embed + delta), eval_fn(embed)).item()


def test_evidence_by_hand():
    """Guards against a ratio divided by another number of tokens than the real ones, and against NaN in the
    log: DeBERTa and padding_idx have zeros on padding."""
    embed = torch.tensor([[[3.0, 4.0]]], requires_grad=True)
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    smart = SMARTLoss(lambda x: x @ weight, squared_error)
    state = embed @ weight
    delta = torch.tensor([[[0.0, 0.5]]])
    one_token = smart.evidence(delta, embed, state, smart.at(delta, embed, state))
    assert one_token["delta_ratio"].item() == pytest.approx(0.5 / 5)
    assert one_token["ascent_divergence"].item() == pytest.approx(1.0)  # (2 x 0.5)²
    assert not any(value.requires_grad for value in one_token.values()), "a graph kept until the log is read"
    nothing = smart.evidence(0 * delta, embed, state, smart.at(0 * delta, embed, state))
    assert {name: value.item() for name, value in nothing.items()} == dict.fromkeys(one_token, 0.0)
    with_padding = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]])
    for on_padding in (0.0, 0.5):
        delta = torch.tensor([[[0.0, 0.5], [0.0, on_padding]]])
        assert delta_ratio(delta, with_padding).item() == pytest.approx(0.1)


def test_the_defaults_are_those_of_the_program():
    """Guards against a class that, used on its own, trains with another regulariser than the program's."""
    smart = SMARTLoss(lambda x: x, sym_kl_loss)
    config = TrainConfig()
    for name in ("num_steps", "step_size", "epsilon", "noise_var"):
        assert getattr(smart, name) == getattr(config, f"smart_{name.removeprefix('num_')}"), name
    assert (smart.num_steps, smart.step_size, smart.epsilon, smart.noise_var) == (1, 0.01, 0.01, 1e-5)
    assert smart.norm_fn is inf_norm and smart.loss_last_fn is sym_kl_loss


@pytest.mark.parametrize(
    "wrong",
    [{"epsilon": 0}, {"epsilon": math.nan}, {"num_steps": -1}, {"step_size": -1.0}, {"noise_var": -1.0}],
)
def test_wrong_settings_are_refused(wrong):
    """Guards against a regulariser switched off by a typo."""
    with pytest.raises(ValueError, match="SMARTLoss"):
        SMARTLoss(lambda x: x, sym_kl_loss, **wrong)
