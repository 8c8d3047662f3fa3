"""Our SMART beside the package smart-pytorch: equal where that is right, different where it is wrong."""

import smart_pytorch
import torch

import mysmartloss
from mysmartloss import inf_norm, js_loss, kl_loss, sym_kl_loss
from toys import random_logits, toy


def test_equal_to_smart_pytorch_where_it_is_right():
    """Guards against differences nobody meant: in KL with batchmean, in the value of symmetric KL,
    and in SMART with noise alone (num_steps=0; smart-pytorch's noise_var is σ, ours σ²)."""
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
        smart = package.SMARTLoss(eval_fn, kl_loss, num_steps=0, noise_var=noise, epsilon=10.0)
        values.append(smart(embed, state))
    torch.testing.assert_close(*values)


def test_differs_from_smart_pytorch_where_it_is_wrong():
    """Guards against our slipping into an error of smart-pytorch.
    Each line is a difference on purpose, and fails too once smart-pytorch mends it."""
    # One logit: always 0. Ours refuses it (test_one_logit_is_refused).
    one = torch.randn(4, 1), torch.randn(4, 1)
    assert smart_pytorch.sym_kl_loss(*one) == 0
    # A sum over rows: λ depends on the batch size.
    input, target = random_logits("kl_loss")
    twice = smart_pytorch.sym_kl_loss(input.repeat(2, 1), target.repeat(2, 1))
    torch.testing.assert_close(twice, 2 * smart_pytorch.sym_kl_loss(input, target))
    # KL(M‖P) + KL(M‖Q) is not Jensen-Shannon, which is ½KL(P‖M) + ½KL(Q‖M).
    mine = js_loss(input, target).item()
    theirs = smart_pytorch.js_loss(input, target, reduction="batchmean").item()
    assert theirs > 2.0 * mine
    # δ is rescaled to norm 1, whatever ε; ours stays within ε. In float64, so that rounding does not hide it.
    _, eval_fn, embed = toy()
    state = eval_fn(embed)
    seen = []
    theirs = smart_pytorch.SMARTLoss(
        lambda x: seen.append(x.detach()) or eval_fn(x), sym_kl_loss, epsilon=1e-9, noise_var=1e-5
    )
    theirs(embed, state)
    assert (inf_norm(seen[-1] - embed) > 0.99).all()
    # The ascent is inert, token by token: the raw gradient vanishes beside the noise.
    cosine = torch.cosine_similarity(seen[-1] - embed, seen[0] - embed, dim=-1)
    assert (cosine > 0.99).all()
