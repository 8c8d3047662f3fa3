"""A training step as a function, for timing: what the loop of `multitask_classifier.train` does."""

import torch
from torch import Tensor, nn

from config import TrainConfig
from datasets import Batch
from multitask_classifier import MultitaskBERT, optimizer_groups, training_loss
from mysmartloss import BregmanProximal
from optimizer import AdamW, clip_gradients, step_if_finite
from tasks import Task


class TrainingLoss:
    """`training_loss` of one model with its settings and its teacher."""

    def __init__(self, model: MultitaskBERT, config: TrainConfig, bregman: BregmanProximal | None = None):
        self.model = model
        self.config = config
        self.bregman = bregman

    def __call__(self, task: Task, batch: Batch, measure: bool = False) -> dict[str, Tensor]:
        return training_loss(self.model, task, batch, self.config, self.bregman, measure)


class Learner:
    """A model with its optimizer and its teacher."""

    def __init__(self, loss: TrainingLoss, config: TrainConfig) -> None:
        self.loss = loss
        self.max_grad_norm = config.max_grad_norm
        self.parameters = [parameter for parameter in loss.model.parameters() if parameter.requires_grad]
        self.device = self.parameters[0].device
        self.optimizer = AdamW(optimizer_groups(loss.model, config), lr=config.lr)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")

    def step(
        self, task: Task, batch: Batch, lr: float, beta: float, measure: bool = False
    ) -> dict[str, Tensor]:
        """Forward, backward, clip, update, teacher."""
        losses = self.loss(task, batch, measure)
        self.scaler.scale(losses["total"]).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        clip_gradients(self.optimizer, norm, self.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        if step_if_finite(self.optimizer, torch.isfinite(norm)) and self.loss.bregman:
            self.loss.bregman.update(self.loss.model, beta)
        self.scaler.update()
        self.optimizer.zero_grad()
        return {name: loss.detach() for name, loss in losses.items()} | {"grad_norm": norm}
