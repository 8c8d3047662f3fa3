"""The Bregman term, its teacher and the teacher's β."""

import pytest
import torch
from torch import nn

from mysmartloss import BregmanProximal, fitted_beta, paper_beta, sym_kl_loss


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.Tanh(), nn.Linear(16, 3))


def test_bregman_term_is_zero_at_the_start_and_pulls_to_the_teacher():
    """Guards against a teacher with dropout masks of its own, for which the term is never 0, and against a
    sign that pushes the model away."""
    net = small_net().train()
    x = torch.randn(64, 6)
    bregman = BregmanProximal(net)

    def term() -> torch.Tensor:
        generator = torch.get_rng_state()
        return bregman(net(x), lambda teacher: teacher(x), sym_kl_loss, generator)

    assert term().item() == 0
    away = [0.3 * torch.randn_like(parameter) for parameter in net.parameters()]
    with torch.no_grad():
        for parameter, step in zip(net.parameters(), away, strict=True):
            parameter += step
    term().backward()
    assert (
        sum((parameter.grad * step).sum() for parameter, step in zip(net.parameters(), away, strict=True)) > 0
    )
    assert all(parameter.grad is None for parameter in bregman.teacher.parameters())


def test_betas():
    """Guards against the paper's momentum in a short run, where the teacher would hardly leave its start."""
    assert [paper_beta(step, 1000) for step in (0, 99, 100, 999)] == [0.99, 0.99, 0.999, 0.999]
    assert fitted_beta(0, 160) == pytest.approx(1 - 1 / 16)
    assert fitted_beta(0, 10**6) == pytest.approx(0.999)
    assert fitted_beta(0, 5) == 0


def test_the_teacher_takes_the_models_buffers():
    """Guards against a teacher whose BatchNorm keeps the statistics of step 0 for the whole training."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).train()
    bregman = BregmanProximal(model)
    model(torch.full((4, 3), 7.0) + torch.randn(4, 3))
    assert not torch.equal(bregman.teacher[1].running_mean, model[1].running_mean)
    bregman.update(model, 0.9)
    assert torch.equal(bregman.teacher[1].running_mean, model[1].running_mean)
    assert bregman.teacher[1].num_batches_tracked == 1
