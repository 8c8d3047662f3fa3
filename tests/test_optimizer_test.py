"""The counterpart of the course's optimizer_test.py: our AdamW fits a linear layer as torch's does.

The course compares with six numbers of its own. tests/test_optimizer.py has the formula step by step.
"""

import torch

from optimizer import AdamW


def fitted(optimizer_class, **settings) -> torch.Tensor:
    """The weight (2,3) after 300 steps towards y = (x0 + x1, -x2), one random x a step."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(2, 3, generator=generator) / 3)
    optimizer = optimizer_class(layer.parameters(), lr=1e-3, eps=1e-12, weight_decay=0.1, **settings)
    for _ in range(300):
        x = torch.rand(3, generator=generator)
        y = torch.stack([x[0] + x[1], -x[2]])
        optimizer.zero_grad()
        (layer(x) - y).square().sum().backward()
        optimizer.step()
    return layer.weight.detach()


def test_optimizer_test():
    """Guards against wrong moments, bias correction or decay. The course adds ε to √v, torch to √v̂.
    torch decays before the update, the course after it. With a small ε and lr 1e-3 both end within 1e-4."""
    ours, theirs = fitted(AdamW), fitted(torch.optim.AdamW)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert (ours - fitted(AdamW, correct_bias=False)).abs().max() > 1e-3
