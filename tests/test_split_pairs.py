"""Pairs whose texts are encoded one by one: the cosine of sts and the contrastive loss of para.

References: sentence-transformers' loss, transformers' BertModel on each text alone.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bert import BertModel
from config import TrainConfig
from datasets import Batch, split_pairs
from multitask_classifier import MultitaskBERT, load_model, save_model, training_loss
from tasks import TASKS, in_batch_negatives
from tiny_bert import both_berts, tiny_config, tiny_model

CLS, SEP = 1, 2


def pair_batch(labels=(3.0, 1.0, 0.5)) -> Batch:
    """Three pairs `[CLS] a [SEP] b [SEP]`; the texts have 3 and 1, 1 and 4, 2 and 2 tokens."""
    rows = [
        [CLS, 11, 12, 13, SEP, 21, SEP, 0],
        [CLS, 31, SEP, 41, 42, 43, 44, SEP],
        [CLS, 5, 6, SEP, 5, 6, SEP, 0],
    ]
    ids = torch.tensor(rows)
    types = torch.tensor([[0] * 5 + [1, 1, 0], [0] * 3 + [1] * 5, [0] * 4 + [1] * 3 + [0]])
    return Batch(np.arange(3), ids, types, ids != 0, torch.tensor(labels), int((ids != 0).sum()), seed=4)


def test_pairs_are_split_by_hand():
    """Guards against a second text without [CLS], and against tokens lost to the padding of the pair."""
    batch = pair_batch()
    ids, mask = split_pairs(*batch.inputs)
    expected = [[CLS, 11, 12, 13, SEP, 0], [CLS, 21, SEP, 0, 0, 0]]
    expected += [[CLS, 31, SEP, 0, 0, 0], [CLS, 41, 42, 43, 44, SEP]]
    expected += [[CLS, 5, 6, SEP, 0, 0]] * 2
    assert ids.tolist() == expected
    assert torch.equal(mask, ids != 0)


def test_the_cosine_is_that_of_transformers(tmp_path):
    """Guards against the head's dropout, the pooler, or a cosine cut off at 0. Reference: transformers' BERT
    on each text alone, the mean of its real tokens, 5 times the cosine."""
    ours, reference = both_berts(tmp_path)
    model = MultitaskBERT(ours, pooling="cls", similarity="cosine", tasks=["sts"]).eval()
    batch = pair_batch()
    ids, mask = split_pairs(*batch.inputs)
    with torch.no_grad():
        scores = model("sts", *batch.inputs)  # (3,1)
        alone = [row[real][None] for row, real in zip(ids, mask, strict=True)]
        vectors = torch.cat([reference(input_ids=text).last_hidden_state.mean(1) for text in alone])
    expected = 5 * F.cosine_similarity(vectors[0::2], vectors[1::2])
    torch.testing.assert_close(scores[:, 0], expected, rtol=1e-4, atol=1e-5)
    assert scores[2, 0] == pytest.approx(5.0, abs=1e-5)  # two equal texts


def test_other_tasks_keep_their_heads():
    """Guards against --similarity that changes para, a task of pairs, too."""
    model = MultitaskBERT(tiny_model().bert, similarity="cosine")
    assert not list(model.heads["sts"].parameters())
    for name in ("sst", "para", "cfimdb"):
        assert isinstance(model.heads[name], torch.nn.Linear)


def test_smart_moves_both_sentences(monkeypatch):
    """Guards against a perturbation of the first text alone, or of padding."""
    model = tiny_model(similarity="cosine").train()
    config = TrainConfig(tasks=("sts",), use_smart=True, bregman_weight=0.0, precision="fp32")
    seen = []
    original = model.logits

    def noted(task, embeddings, mask=None):
        seen.append(embeddings.detach())
        return original(task, embeddings, mask)

    monkeypatch.setattr(model, "logits", noted)
    training_loss(model, TASKS["sts"], pair_batch(), config)
    _, mask = split_pairs(*pair_batch().inputs)
    moved = (seen[-1] - seen[0]).abs().amax(-1)  # (6,S): the pass at δ beside the clean pass
    assert (moved[mask] > 0).all() and (moved[~mask] == 0).all()


def test_the_noise_of_a_pair_is_the_same_in_every_share():
    """Guards against torchrun's processes that perturb the texts of a pair differently from one process."""
    batch = pair_batch()
    whole = batch.noise(torch.zeros(6, 5, 4))
    for rank in range(2):
        share = batch.share(rank, 2)
        rows = len(share.input_ids)
        part = share.noise(torch.zeros(2 * rows, 5, 4))
        assert torch.equal(part, whole.view(3, 2, 5, 4)[rank::2].flatten(0, 1))


def test_a_saved_cosine_opens(tmp_path, tokenizer):
    """Guards against a model that can't be opened because its head has no weights."""
    config = TrainConfig(tasks=("sts",), similarity="cosine", max_length=16)
    bert = BertModel(tiny_config(vocab_size=30522))
    model = MultitaskBERT(bert, similarity="cosine", tasks=["sts"]).eval()
    scores = {"dev": {"sts": {"pearson": 0.5}}, "dev_mean": 0.5, "best_step": 1}
    run = {"config": config.to_dict(), "trained_tasks": ["sts"], "data": "sample"} | scores
    save_model(tmp_path / "best", {"student": model}, "student", tokenizer, run)
    opened, _, _ = load_model(tmp_path)
    texts = [("A man eats.", "A man is eating."), ("Cats sleep.", "The sun is hot.")]
    model.tokenizer = tokenizer
    assert opened.eval().predict("sts", texts) == model.predict("sts", texts)


def test_in_batch_negatives_are_those_of_sentence_transformers():
    """Guards against another loss under the same name. Reference: its loss on the same embeddings."""
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    generator = torch.Generator().manual_seed(0)
    anchors, positives = torch.randn(2, 7, 16, generator=generator)
    reference = MultipleNegativesRankingLoss(model=None, scale=20.0)
    expected = reference.compute_loss_from_embeddings([anchors, positives], None)
    torch.testing.assert_close(in_batch_negatives(anchors, positives), expected)


def test_only_duplicates_are_positives():
    """Guards against other pairs pulled together, and against NaN where one duplicate has no negatives.
    Reference: the loss on the rows with label 1."""
    model = tiny_model().eval()
    config = TrainConfig(tasks=("para",), contrastive_weight=0.5, precision="fp32")
    batch = pair_batch((1.0, 0.0, 1.0))
    losses = training_loss(model, TASKS["para"], batch, config)
    ids, mask = split_pairs(*batch.inputs)
    vectors = model.sentence_vectors(ids, mask)
    expected = in_batch_negatives(vectors[[0, 4]], vectors[[1, 5]])
    torch.testing.assert_close(losses["contrastive"], expected)
    torch.testing.assert_close(losses["total"], losses["task"] + 0.5 * expected)
    losses = training_loss(model, TASKS["para"], pair_batch((0.0, 1.0, 0.0)), config)
    assert losses["contrastive"] == 0 and losses["total"] == losses["task"]
