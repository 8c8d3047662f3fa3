"""MiniLM with its task heads, for the tests of SMART and Bregman on real sentences."""

import pytest
import torch

from bert import BertModel
from multitask_classifier import MultitaskBERT


@pytest.fixture(scope="session")
def real_model() -> MultitaskBERT:
    torch.manual_seed(0)
    return MultitaskBERT(BertModel.from_pretrained()).train()
