"""BERT by hand: embeddings, self-attention layers, pooler.

Source: Devlin et al. 2019 (arXiv 1810.04805), with LayerNorm after each residual sum and exact GELU.
Shapes: B batch, T tokens, H hidden, N heads, D = H / N.

`BertModel.forward` takes three steps, and a perturbation of the input goes between the first two:

    1. embed    input_ids, token_type_ids (B,T) -> embeddings (B,T,H)
       [hook]   embeddings + δ (B,T,H), see mysmartloss.py
    2. encode   embeddings (B,T,H), attention_mask (B,T) -> hidden (B,T,H)
    3. pool     hidden (B,T,H) -> (B,H)

Not handled: decoding, cross-attention, gradient checkpointing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from base_bert import BertConfig, BertPreTrainedModel
from support.dropout import Dropout, dropout


class BertSelfAttention(nn.Module):
    """Multi-head scaled dot-product attention with dropout on its probabilities."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        # one matrix product for query, key and value
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """hidden (B,T,H) -> (B,T,H). The mask is bool (B,1,1,T), True for real tokens; None: all are real."""
        batch, tokens, width = hidden.shape
        joint = self.query_key_value(hidden).view(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = joint.permute(2, 0, 3, 1, 4)  # (B,T,3,N,D) -> three times (B,N,T,D)
        dropout_prob = self.dropout_prob if self.training else 0.0
        # On CPUs torch has no fused attention kernel with dropout.
        if dropout_prob and hidden.device.type == "cpu":
            scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (B,N,T,T)
            if mask is not None:
                scores = scores.masked_fill(~mask, -torch.inf)
            context = dropout(scores.softmax(-1), dropout_prob) @ v  # (B,N,T,D)
        else:
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_prob)
        return context.transpose(1, 2).reshape(batch, tokens, width)  # (B,N,T,D) -> (B,T,H)


class BertLayer(nn.Module):
    """Self-attention and feed-forward, each followed by dropout, residual sum and LayerNorm."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.self_attention = BertSelfAttention(config)
        self.attention_dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.attention_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.interm_dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.out_dense = nn.Linear(config.intermediate_size, config.hidden_size)
        self.out_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, mask: Tensor | None) -> Tensor:
        """hidden (B,T,H) and mask, None or bool (B,1,1,T) -> (B,T,H)."""
        attended = self.dropout(self.attention_dense(self.self_attention(hidden, mask)))
        hidden = self.attention_layer_norm(hidden + attended)
        fed_forward = self.dropout(self.out_dense(F.gelu(self.interm_dense(hidden))))
        return self.out_layer_norm(hidden + fed_forward)


def run_layer(layer: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """hidden (B,T,H) and mask, None or bool (B,1,1,T) -> (B,T,H)."""
    output: Tensor = layer(hidden, mask)
    return output


class BertModel(BertPreTrainedModel):
    """The encoder. `BertModel(config)` has new weights, `BertModel.from_pretrained(name)` trained weights."""

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.pos_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.tk_type_embedding = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embed_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.embed_dropout = Dropout(config.hidden_dropout_prob)
        self.bert_layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        self.pooler_dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.run_layer = run_layer
        self.init_weights()

    def compile_layers(self, backend: str = "inductor") -> None:
        """Compile the layers for training, for any number of rows and tokens; `state_dict` keys stay.

        The compiled function takes the layer as an argument, so all layers share it, those of SMART's teacher
        included.
        """
        self.run_layer = torch.compile(run_layer, dynamic=True, backend=backend)

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Token ids (B,T) and segment ids (B,T; None for zeros) -> embeddings (B,T,H).

        LayerNorm and dropout are applied. Raises ValueError if T is larger than `max_position_embeddings`.
        """
        tokens = input_ids.shape[1]
        if tokens > self.config.max_position_embeddings:
            limit = self.config.max_position_embeddings
            raise ValueError(f"{tokens} tokens, but the encoder has positions for {limit}")
        types = self.tk_type_embedding.weight[0]  # (H,)
        if token_type_ids is not None:
            types = self.tk_type_embedding(token_type_ids)  # (B,T,H)
        summed = self.word_embedding(input_ids) + self.pos_embedding.weight[:tokens] + types  # (B,T,H)
        return self.embed_dropout(self.embed_layer_norm(summed))

    def encode(self, embeddings: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Embeddings (B,T,H) and mask (B,T) -> last hidden state (B,T,H).

        The mask is nonzero for real tokens and 0 for padding; None means that all tokens are real.
        """
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]  # (B,1,1,T)
        hidden = embeddings
        run = self.run_layer if self.training else run_layer  # evaluation, in threads, is not compiled
        for layer in self.bert_layers:
            hidden = run(layer, hidden, mask)
        return hidden

    def pool(self, hidden: Tensor) -> Tensor:
        """Last hidden state (B,T,H) -> pooled state (B,H): linear layer and tanh of the [CLS] state."""
        return torch.tanh(self.pooler_dense(hidden[:, 0]))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Ids, mask and segment ids (B,T) -> `last_hidden_state` (B,T,H) and `pooler_output` (B,H)."""
        hidden = self.encode(self.embed(input_ids, token_type_ids), attention_mask)
        return {"last_hidden_state": hidden, "pooler_output": self.pool(hidden)}
