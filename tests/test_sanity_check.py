"""The counterpart of the course's sanity_check.py: two rows of ids through our BERT and through another one.

The course has numbers that its own BERT computed from bert-base-uncased. Here they come from transformers'
BertModel, for weights that it saved to disk. tests/test_bert.py has many more cases.
"""

import pytest
import torch

from tiny_bert import TINY, both_berts


@pytest.mark.parametrize("output", ["last_hidden_state", "pooler_output"])
def test_sanity_check(tmp_path, output):
    """Guards against self-attention, add-norm or embeddings that are not BERT's. The first row is padded."""
    ours, reference = both_berts(tmp_path)
    last = TINY.vocab_size - 1
    ids = torch.tensor([[1, 7, 20, 2, 0, 0, 0, 0], [1, 7, 15, 29, 5, 17, last, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        got = ours(ids, mask)[output]
        expected = reference(ids, attention_mask=mask)[output]
    if output == "last_hidden_state":  # what stands at padding is nobody's
        got = got * mask[:, :, None]
        expected = expected * mask[:, :, None]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-3)
