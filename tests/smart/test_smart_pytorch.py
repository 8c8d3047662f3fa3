"""Our SMART beside the package smart-pytorch, where that is right."""

import smart_pytorch
import torch

import mysmartloss
from mysmartloss import kl_loss, sym_kl_loss
from toys import random_logits, toy


def test_equal_to_smart_pytorch():
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
