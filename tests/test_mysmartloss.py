"""Divergences, dropout replay, Algorithm 1 and the Bregman teacher against closed forms, finite differences
and scipy."""

import math

import numpy as np
import pytest
import smart_pytorch
import torch
from scipy import special, stats
from torch import nn

import mysmartloss
from config import TrainConfig
from datasets import collate, read_examples, tokenize
from multitask_classifier import MultitaskBERT, training_loss
from mysmartloss import (
    BregmanProximal,
    DropoutReplay,
    SMARTLoss,
    bernoulli_js_loss,
    bernoulli_kl_loss,
    bernoulli_sym_kl_loss,
    fitted_beta,
    inf_norm,
    js_loss,
    kl_loss,
    l2_norm,
    paper_beta,
    squared_error,
    sym_kl_loss,
)
from run_files import HERE
from tasks import TASKS

SOFTMAX = {"kl_loss": kl_loss, "sym_kl_loss": sym_kl_loss, "js_loss": js_loss}
BERNOULLI = {
    "bernoulli_kl_loss": bernoulli_kl_loss,
    "bernoulli_sym_kl_loss": bernoulli_sym_kl_loss,
    "bernoulli_js_loss": bernoulli_js_loss,
}
ALL = SOFTMAX | BERNOULLI | {"squared_error": squared_error}


def random_logits(name: str, rows: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    outputs = 5 if name in SOFTMAX else 1
    return tuple(2 * torch.randn(rows, outputs, generator=generator, dtype=torch.float64) for _ in range(2))


def by_scipy(name: str, input: torch.Tensor, target: torch.Tensor) -> float:
    """The divergence from scipy's entropy, row by row."""
    kind = name.removeprefix("bernoulli_")
    if name in BERNOULLI:
        input, target = (torch.cat([torch.zeros_like(x), x], -1) for x in (input, target))
    q, p = (special.softmax(x.numpy(), axis=-1) for x in (input, target))
    kl = {
        "kl_loss": lambda p, q: stats.entropy(p, q),
        "sym_kl_loss": lambda p, q: stats.entropy(p, q) + stats.entropy(q, p),
        "js_loss": lambda p, q: (stats.entropy(p, (p + q) / 2) + stats.entropy(q, (p + q) / 2)) / 2,
    }[kind]
    return float(np.mean([kl(a, b) for a, b in zip(p, q, strict=True)]))


# -------------------------------------------------------------------------------------- divergences


@pytest.mark.parametrize("name", [*SOFTMAX, *BERNOULLI])
def test_values_are_scipys(name):
    """Guards against a divergence with its arguments swapped, a missing half, or a sum in place of the
    mean."""
    input, target = random_logits(name)
    assert ALL[name](input, target).item() == pytest.approx(by_scipy(name, input, target), rel=1e-9)


def test_squared_error_by_hand():
    """Guards against a mean over outputs where the distance is a sum, and a sum over rows where it is a
    mean."""
    assert squared_error(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [1.0]])).item() == 2.5
    assert squared_error(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 1.0])).item() == 2.5
    assert squared_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])).item() == 5.0


@pytest.mark.parametrize("name", ALL)
def test_gradients_by_finite_differences(name):
    """Guards against a detach inside a divergence: gradients flow to both arguments."""
    pairs = [x.requires_grad_() for x in random_logits(name)]
    assert torch.autograd.gradcheck(ALL[name], pairs)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_with_zero_gradient_at_equality(name, dtype):
    """Guards against a term that pushes although nothing differs."""
    input, target = (random_logits(name)[0].to(dtype).requires_grad_() for _ in range(2))
    loss = ALL[name](input, target)
    loss.backward()
    assert loss.item() == 0 and loss.dtype == torch.float32
    assert input.grad.abs().max() == 0 and target.grad.abs().max() == 0


@pytest.mark.parametrize("name", ALL)
def test_batch_mean(name):
    """Guards against `reduction='sum'`: λ would mean something else for every batch size."""
    input, target = random_logits(name)
    assert ALL[name](input.repeat(3, 1), target.repeat(3, 1)).item() == pytest.approx(
        ALL[name](input, target).item(), rel=1e-12
    )


@pytest.mark.parametrize("name", BERNOULLI)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bernoulli_forms_are_stable(name, dtype):
    """Guards against log(sigmoid) overflowing to inf or NaN for a confident model."""
    for a, b in [(80.0, -80.0), (-80.0, 80.0), (80.0, 79.0), (80.0, 0.0), (1e4, -1e4)]:
        input, target = torch.tensor([[a]], dtype=dtype, requires_grad=True), torch.tensor([[b]], dtype=dtype)
        loss = BERNOULLI[name](input, target)
        loss.backward()
        assert torch.isfinite(loss) and loss >= 0 and torch.isfinite(input.grad).all()
    sym = bernoulli_sym_kl_loss(torch.tensor([[80.0]]), torch.tensor([[-80.0]])).item()
    assert sym == pytest.approx(160)  # (σ(a) - σ(b)) (a - b)


@pytest.mark.parametrize("name", SOFTMAX)
@pytest.mark.parametrize("shape", [(4, 1), (4,)])
def test_one_logit_is_refused(name, shape):
    """Guards against the softmax KL of one logit: identically 0, the regulariser silently dead on paraphrase
    and similarity."""
    with pytest.raises(ValueError, match=f"bernoulli_{name} or squared_error"):
        SOFTMAX[name](torch.randn(shape), torch.randn(shape))


@pytest.mark.parametrize("name", BERNOULLI)
def test_several_logits_are_refused_by_bernoulli_forms(name):
    """Guards against five classes read as five independent coins."""
    with pytest.raises(ValueError, match=f"use {name.removeprefix('bernoulli_')}"):
        BERNOULLI[name](torch.randn(4, 5), torch.randn(4, 5))


@pytest.mark.parametrize("name", ALL)
def test_shapes_that_would_broadcast_are_refused(name):
    """Guards against (B,) against (B,1), which is (B,B): 1.85 on identical inputs in mt-dnn."""
    input, _ = random_logits(name)
    with pytest.raises(ValueError, match="broadcast"):
        ALL[name](input[:, 0], input)


# ----------------------------------------------------------------------------------- dropout replay


def test_replay_draws_the_same_masks_and_restores_the_generator():
    """Guards against different masks in clean and adversarial pass (mostly R-Drop), and against a run that
    SMART derails."""
    dropout, x = nn.Dropout(0.5), torch.ones(4, 50)
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


def test_replay_restores_the_generator_after_an_error():
    """Guards against an interrupted pass leaving the run on other random numbers."""
    replay = DropoutReplay(lambda x: x)
    replay(torch.zeros(1))
    before = torch.get_rng_state()

    def fail(x):
        torch.rand(3)
        raise RuntimeError

    replay.function = fail
    with pytest.raises(RuntimeError):
        replay(torch.zeros(1))
    assert torch.equal(torch.get_rng_state(), before)


# -------------------------------------------------------------------------------------------- SMART


def toy(outputs: int = 3, width: int = 8, dtype=torch.float64):
    """A small smooth function from embeddings (B,T,H) to logits (B,C), and embeddings for it."""
    torch.manual_seed(0)
    mixing = nn.Sequential(nn.Linear(width, 16), nn.Tanh(), nn.Linear(16, outputs)).to(dtype)
    return mixing, lambda x: mixing(x).mean(1), torch.randn(2, 4, width, dtype=dtype)


@pytest.mark.parametrize("norm_fn", [inf_norm, l2_norm])
@pytest.mark.parametrize(
    ("loss_fn", "outputs"), [(sym_kl_loss, 3), (bernoulli_sym_kl_loss, 1), (squared_error, 1)]
)
def test_ascent_direction_by_finite_differences(norm_fn, loss_fn, outputs):
    """Guards against an ascent along anything but the gradient of the divergence, normalised per token."""
    _, eval_fn, embed = toy(outputs)
    clean, settings = (
        eval_fn(embed).detach(),
        {"norm_fn": norm_fn, "epsilon": 100.0, "noise_var": 1e-2, "step_size": 0.7},
    )
    torch.manual_seed(1)
    start = SMARTLoss(eval_fn, loss_fn, num_steps=0, **settings).perturbation(embed, clean)
    torch.manual_seed(1)
    end = SMARTLoss(eval_fn, loss_fn, num_steps=1, **settings).perturbation(embed, clean)
    gradient, h = torch.zeros_like(start), 1e-6
    for place in np.ndindex(*start.shape):
        bump = torch.zeros_like(start)
        bump[place] = h
        with torch.no_grad():
            gradient[place] = (
                loss_fn(eval_fn(embed + start + bump), clean) - loss_fn(eval_fn(embed + start - bump), clean)
            ) / (2 * h)
    torch.testing.assert_close(end - start, 0.7 * gradient / norm_fn(gradient), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("norm_fn", "dual"), [(inf_norm, 1), (l2_norm, 2)])
def test_ascent_reaches_the_worst_case_of_a_quadratic(norm_fn, dual):
    """Guards against an inert ascent. f(x) = a·x: the worst (a·δ)² in the ball is (ε ‖a‖_dual)²; at least 95
    % of it is reached."""
    torch.manual_seed(0)
    a, embed = torch.randn(32), torch.randn(5, 1, 32)
    smart = SMARTLoss(
        lambda x: x @ a, squared_error, norm_fn=norm_fn, epsilon=0.03, step_size=0.03, num_steps=20
    )
    state = embed @ a
    reached = smart(embed, state).item()
    worst = (0.03 * torch.linalg.vector_norm(a, dual).item()) ** 2
    assert 0.95 * worst <= reached <= worst * (1 + 1e-5)
    noise_only = SMARTLoss(
        lambda x: x @ a, squared_error, norm_fn=norm_fn, epsilon=0.03, num_steps=0, noise_var=0.03**2
    )
    assert noise_only(embed, state).item() < 0.5 * worst


@pytest.mark.parametrize("norm_fn", [inf_norm, l2_norm])
@pytest.mark.parametrize("epsilon", [1e-5, 0.03, 1.0])
@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_delta_stays_in_the_ball_and_off_the_padding(norm_fn, epsilon, num_steps):
    """Guards against noise rescaled to unit norm (5.5 times the embedding in smart-pytorch), and against
    perturbed padding."""
    _, eval_fn, embed = toy(dtype=torch.float32)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    smart = SMARTLoss(
        eval_fn,
        sym_kl_loss,
        norm_fn=norm_fn,
        epsilon=epsilon,
        num_steps=num_steps,
        step_size=10 * epsilon,
        noise_var=1.0,
    )
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
    SMARTLoss(lambda x: seen.append(x) or eval_fn(x), sym_kl_loss, epsilon=1e-4)(
        embed, eval_fn(embed.float())
    )
    assert all(x.dtype == torch.float32 for x in seen)


def test_ascent_differentiates_the_perturbation_only():
    """Guards against inner gradients that pile up in `.grad` of the model, and against one through the clean
    pass."""
    mixing, eval_fn, embed = toy()
    embed.requires_grad_()
    delta = SMARTLoss(eval_fn, sym_kl_loss, num_steps=2).perturbation(embed, eval_fn(embed))
    assert embed.grad is None and all(parameter.grad is None for parameter in mixing.parameters())
    assert not delta.requires_grad and not delta.grad_fn


def test_ascent_works_without_outer_gradients():
    """Guards against an ascent that fails, or does nothing, when R_s is measured under no_grad."""
    _, eval_fn, embed = toy()
    with torch.no_grad():
        assert SMARTLoss(eval_fn, sym_kl_loss, step_size=0.03, epsilon=0.03)(embed, eval_fn(embed)) > 0


def test_first_noise_has_variance_noise_var():
    """Guards against σ² used as σ (Algorithm 1 draws from N(0, σ²))."""
    embed = torch.zeros(4, 50, 100)
    delta = SMARTLoss(lambda x: x.sum(1), sym_kl_loss, num_steps=0, noise_var=0.25, epsilon=1e9).perturbation(
        embed, embed.sum(1)
    )
    assert delta.var().item() == pytest.approx(0.25, rel=0.03)


def test_loss_last_fn_is_returned_and_loss_fn_climbed():
    """Guards against the two losses being swapped."""
    _, eval_fn, embed = toy()
    calls = []
    smart = SMARTLoss(
        eval_fn,
        lambda a, b: calls.append("ascent") or sym_kl_loss(a, b),
        lambda a, b: calls.append("last") or js_loss(a, b),
        num_steps=2,
    )
    torch.manual_seed(0)
    value = smart(embed, eval_fn(embed))
    torch.manual_seed(0)
    delta = smart.perturbation(embed, eval_fn(embed))
    assert calls == ["ascent", "ascent", "last", "ascent", "ascent"]
    assert value.item() == js_loss(eval_fn(embed + delta), eval_fn(embed)).item()


def test_a_rows_perturbation_does_not_depend_on_the_batch(monkeypatch):
    """Guards against a gradient normalised over the batch: δ, and so λ, would change with the batch size."""
    _, eval_fn, embed = toy()
    noise = torch.randn(embed.shape[1:], dtype=embed.dtype)
    monkeypatch.setattr(mysmartloss.torch, "randn_like", lambda x, dtype: noise.expand(x.shape).clone())
    smart = SMARTLoss(eval_fn, sym_kl_loss, step_size=0.1, epsilon=0.05, num_steps=2)
    both = smart.perturbation(embed, eval_fn(embed))
    alone = torch.cat([smart.perturbation(row[None], eval_fn(row[None])) for row in embed])
    torch.testing.assert_close(both, alone)


@pytest.mark.parametrize(
    "wrong",
    [{"epsilon": 0}, {"epsilon": math.nan}, {"num_steps": -1}, {"step_size": -1.0}, {"noise_var": -1.0}],
)
def test_wrong_settings_are_refused(wrong):
    """Guards against a regulariser switched off by a typo."""
    with pytest.raises(ValueError, match="SMARTLoss"):
        SMARTLoss(lambda x: x, sym_kl_loss, **wrong)


# ---------------------------------------------------------------------------- with the real encoder


@pytest.fixture(scope="module")
def real_model():
    from bert import BertModel

    torch.manual_seed(0)
    return MultitaskBERT(BertModel.from_pretrained()).train()


def real_batch(name: str, tokenizer, rows: int = 8):
    task = TASKS[name]
    examples = read_examples(HERE / "data" / "sample" / task.filename("train"), task)[:rows]
    return collate(tokenize(examples, task, tokenizer, 64), np.arange(rows))


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_term_is_exactly_zero_without_perturbation_in_train_mode(real_model, tokenizer, task):
    """Guards against R_s(x, x) ≠ 0: with fresh masks it is 7.6e-3 against 1.5e-7 for the perturbation
    itself."""
    batch = real_batch(task, tokenizer)
    embeddings = real_model.bert.embed(batch.input_ids, batch.token_type_ids)
    encode = DropoutReplay(lambda x: real_model.logits(task, x, batch.attention_mask))
    logits = encode(embeddings)
    assert (
        SMARTLoss(encode, TASKS[task].divergence).at(torch.zeros_like(embeddings), embeddings, logits).item()
        == 0
    )


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_adversarial_divergence_exceeds_random_at_equal_size(real_model, tokenizer, task, norm):
    """Guards against an inert ascent (cos(final δ, first noise) = 1 in smart-pytorch), for every head."""
    torch.manual_seed(1)
    config = TrainConfig(use_smart=True, bregman_weight=0.0, smart_norm=norm)
    losses = training_loss(real_model, TASKS[task], real_batch(task, tokenizer), config, measure=True)
    assert losses["ascent_gain"] > 2 and losses["smart"].item() == losses["ascent_divergence"].item()
    assert 0.001 < losses["delta_ratio"] < 0.2


# ------------------------------------------------------------------------------------------ Bregman


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 3))


def test_teacher_is_the_closed_form_of_the_moving_average():
    """Guards against a teacher that averages some parameters only, starts elsewhere, or has β and 1-β
    swapped."""
    net = small_net().double()
    bregman = BregmanProximal(net)
    history = [[parameter.detach().clone() for parameter in net.parameters()]]
    for step in range(50):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter += torch.randn_like(parameter)
        history.append([parameter.detach().clone() for parameter in net.parameters()])
        bregman.update(net, 0.9)
        expected = [0.9 ** (step + 1) * first for first in history[0]]
        for age, past in enumerate(reversed(history[1:])):
            expected = [sum_ + 0.1 * 0.9**age * value for sum_, value in zip(expected, past, strict=True)]
        for parameter, value in zip(bregman.teacher.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter, value)


def test_teacher_is_a_copy_without_gradients():
    """Guards against a teacher that shares storage with the model, or is trained."""
    net = small_net()
    bregman = BregmanProximal(net)
    pairs = list(zip(net.parameters(), bregman.teacher.parameters(), strict=True))
    assert all(torch.equal(a, b) and a.data_ptr() != b.data_ptr() and not b.requires_grad for a, b in pairs)


def test_bregman_term_is_zero_at_the_start_and_pulls_to_the_teacher():
    """Guards against a teacher with its own dropout masks (never 0), and against a sign that pushes away."""
    net, x = small_net().train(), torch.randn(64, 6)
    bregman = BregmanProximal(net)

    def term() -> torch.Tensor:
        generator = torch.get_rng_state()
        return bregman(net(x), lambda teacher: teacher(x), sym_kl_loss, generator)

    def distance() -> float:
        pairs = zip(net.parameters(), bregman.teacher.parameters(), strict=True)
        return sum((a - b).square().sum().item() for a, b in pairs)

    assert term().item() == 0
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    before, first = distance(), term().item()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        term().backward()
        optimizer.step()
    assert distance() < 0.9 * before and term().item() < 0.05 * first
    assert all(parameter.grad is None for parameter in bregman.teacher.parameters())


def test_bregman_in_training_loss(real_model, tokenizer):
    """Guards against a Bregman term that is not in the total, or not 0 for the very first batch."""
    bregman, batch = BregmanProximal(real_model), real_batch("para", tokenizer, 4)
    config = TrainConfig(use_smart=True, smart_weight=0.0, bregman_weight=2.0)
    assert training_loss(real_model, TASKS["para"], batch, config, bregman)["bregman"].item() == 0
    with torch.no_grad():
        bregman.teacher.heads["para"].bias += 0.5
    losses = training_loss(real_model, TASKS["para"], batch, config, bregman)
    assert losses["bregman"] > 1e-3
    torch.testing.assert_close(losses["total"], losses["task"] + 2 * losses["bregman"])


def test_betas():
    """Guards against the paper's momentum in a short run: the teacher would stay at the starting point."""
    assert [paper_beta(step, 1000) for step in (0, 99, 100, 999)] == [0.99, 0.99, 0.999, 0.999]
    assert (
        fitted_beta(0, 160) == pytest.approx(1 - 1 / 16)
        and fitted_beta(0, 10**6) == pytest.approx(0.999)
        and fitted_beta(0, 5) == 0
    )


def test_rdrop_is_a_term_of_its_own(real_model, tokenizer):
    """Guards against R-Drop mixed silently into SMART: it is on only when asked for, and then works without
    SMART."""
    batch = real_batch("sst", tokenizer, 4)
    losses = training_loss(real_model, TASKS["sst"], batch, TrainConfig(rdrop_weight=0.5))
    assert set(losses) == {"task", "rdrop", "total"} and losses["rdrop"] > 1e-4
    torch.testing.assert_close(losses["total"], losses["task"] + 0.5 * losses["rdrop"])


# ---------------------------------------------------------------------------- against smart-pytorch


def test_equal_to_smart_pytorch_where_it_is_right():
    """KL with batchmean, symmetric KL as a value, and the noise-only case (its num_steps=0, noise_var there
    being σ)."""
    input, target = random_logits("kl_loss")
    torch.testing.assert_close(kl_loss(input, target), smart_pytorch.kl_loss(input, target))
    torch.testing.assert_close(
        sym_kl_loss(input, target), smart_pytorch.sym_kl_loss(input, target, reduction="batchmean")
    )
    _, eval_fn, embed = toy(dtype=torch.float32)
    state = eval_fn(embed)
    values = []
    for package, noise in ((mysmartloss, 0.1**2), (smart_pytorch, 0.1)):
        torch.manual_seed(0)
        values.append(
            package.SMARTLoss(eval_fn, kl_loss, num_steps=0, noise_var=noise, epsilon=10.0)(embed, state)
        )
    torch.testing.assert_close(*values)


def test_differs_from_smart_pytorch_where_it_is_wrong():
    """Each line is a difference on purpose; it fails if smart-pytorch mends it, or if we slip into it."""
    one = torch.randn(4, 1), torch.randn(4, 1)
    assert (
        smart_pytorch.sym_kl_loss(*one) == 0
    )  # one logit: dead; ours refuses it (test_one_logit_is_refused)
    input, target = random_logits("kl_loss")
    twice = smart_pytorch.sym_kl_loss(input.repeat(2, 1), target.repeat(2, 1))
    torch.testing.assert_close(
        twice, 2 * smart_pytorch.sym_kl_loss(input, target)
    )  # a sum: λ depends on the batch size
    mine, theirs = (
        js_loss(input, target).item(),
        smart_pytorch.js_loss(input, target, reduction="batchmean").item(),
    )
    assert theirs > 2.0 * mine  # KL(M‖P) + KL(M‖Q) is not Jensen-Shannon, which is ½KL(P‖M) + ½KL(Q‖M)
    _, eval_fn, embed = toy()  # in float64, so that rounding does not hide the noise
    state, seen = eval_fn(embed), []
    theirs = smart_pytorch.SMARTLoss(
        lambda x: seen.append(x.detach()) or eval_fn(x), sym_kl_loss, epsilon=1e-9, noise_var=1e-5
    )
    theirs(embed, state)
    assert (
        inf_norm(seen[-1] - embed) > 0.99
    ).all()  # δ is rescaled to norm 1, whatever ε; ours stays within ε
    cosine = torch.cosine_similarity(seen[-1] - embed, seen[0] - embed, dim=-1)  # per token, as it normalises
    assert (cosine > 0.99).all()  # the ascent is inert: the raw gradient vanishes beside the noise
