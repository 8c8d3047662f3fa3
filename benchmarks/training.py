"""The training step that is measured: the one place that knows how `multitask_classifier.train` takes it."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

import multitask_classifier as program
from config import TrainConfig
from datasets import Batch, TokenizedDataset, collate
from mysmartloss import BregmanProximal
from optimizer import AdamW, clip_gradients, parameter_groups, step_if_finite
from tasks import Task


class Training:
    """A model, its optimizer and its teacher. A step is one of the program's, without schedule and log."""

    def __init__(self, model: program.MultitaskBERT, config: TrainConfig) -> None:
        self.model = model
        self.config = config
        self.teacher = BregmanProximal(model) if config.has_teacher else None
        self.device = next(model.parameters()).device
        self.optimizer = AdamW(parameter_groups(model, config.weight_decay), lr=1e-5)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")

    def step(self, task: Task, batch: Batch, measure: bool = False) -> dict[str, Tensor]:
        """Train on one batch. Returns the loss by its terms."""
        losses = program.training_loss(self.model, task, batch, self.config, self.teacher, measure)
        self.scaler.scale(losses["total"]).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        clip_gradients(self.optimizer, norm, self.config.max_grad_norm)
        step_if_finite(self.optimizer, torch.isfinite(norm))
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.teacher:
            self.teacher.update(self.model, 0.99)
        return losses

    def step_on(self, dataset: TokenizedDataset, rows: np.ndarray, number: int = 0) -> None:
        """Make the batch of these row numbers (B,), the task's `number`-th, and train on it."""
        self.step(dataset.task, replace(collate(dataset, rows), number=number))
