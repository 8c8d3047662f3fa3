"""`SMART` as a researcher with another model would use it: thirteen models, and how they are trained."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
import transformers
from torch import Tensor, nn

from any_models import CASES, SIZES, alone, call, hf, made, text_batch, without_dropout
from mysmartloss import (
    SMART,
    SMARTLoss,
    bernoulli_sym_kl_loss,
    embedding_block,
    logits_of,
    squared_error,
    sym_kl_loss,
)


@pytest.fixture(autouse=True)
def no_warnings():
    """A warning of SMART is an error, unless a test expects it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "SMART")
        yield


def noise_of(x: Tensor) -> Tensor:
    """Noise that depends on a token's embedding alone: a row has the same with and without padding."""
    return (1e3 * x).sin().to(torch.promote_types(x.dtype, torch.float32))


def penalty(model: nn.Module, batch, **settings) -> Tensor:
    """What SMART adds to the loss of the model's pass."""
    torch.manual_seed(7)
    smart = SMART(model, "classification", noise_fn=noise_of, **settings)
    call(model, batch)
    value = smart(batch)
    smart.remove()
    return value


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


# ---------------------------------------------------------------------------------- the thirteen models


@pytest.mark.parametrize("name", CASES)
def test_three_lines(name):
    """Guards against a model that SMART takes, and whose regulariser is dead or is R-Drop: another module
    than the block is perturbed, dropout is drawn anew, or no gradient arrives."""
    model, batch = made(name)
    smart = SMART(model, CASES[name].task, epsilon=0.04)
    assert smart.block is model.get_submodule(CASES[name].block)
    call(model, batch)
    value = smart(batch)
    assert value.item() == pytest.approx(smart.last["smart"].item() + smart.last["bregman"].item())
    assert smart.last["smart"] > 1e-6 and 0.003 < smart.last["delta_ratio"] < 1.5
    assert smart.last["bregman"] < 1e-12  # θ̃ = θ and the same masks; the kernel of LSTM differs by rounding
    value.backward()
    reached = gradients(model)
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    assert not tables or tables & set(reached) or name == "inputs_embeds"
    assert len(reached) > 0.8 * len(list(model.parameters()))
    # without noise and ascent δ is 0, and nothing is left: the masks are those of the model's own pass
    still = SMART(model, CASES[name].task, noise_var=0.0, num_steps=0)
    call(model, batch)
    assert still(batch) < 1e-12 and still.last["smart"] == 0


@pytest.mark.parametrize(
    "name",
    ["bert", "deberta-v2", "modernbert", "gpt2, its last token", "gpt2, padded left", "llama", "tokens"],
)
def test_padding_changes_nothing(name):
    """Guards against perturbed padding, position ids that move, and another last token than the row's: with
    inputs_embeds in place of the hook, R_s of GPT-2 was off by .27."""
    model, batch = made(name)
    model = without_dropout(model)
    together = penalty(model, batch)
    rows = alone(batch)
    # of tokens the mean goes over the tokens
    counts = [row["attention_mask"].numel() if name == "tokens" else 1 for row in rows]
    expected = sum(penalty(model, row).item() * n for row, n in zip(rows, counts, strict=True)) / sum(counts)
    assert together.item() == pytest.approx(expected, rel=1e-3) and together > 1e-6


@pytest.mark.parametrize(
    ("name", "task", "divergence"),
    [
        ("roberta, padded left", "classification", sym_kl_loss),
        ("gpt2, its last token", "regression", squared_error),
        ("a wrapper, one logit", "binary", bernoulli_sym_kl_loss),
        ("tokens", "classification", sym_kl_loss),
    ],
)
def test_it_is_smart_loss_behind_the_block(name, task, divergence):
    """Guards against another R_s than that of `SMARTLoss`, with which our own trainer computes, on the same
    model, cut by hand behind its block; against another divergence, weight, D_Breg or gradient.
    With inputs_embeds in place of the hook, R_s of RoBERTa with padding on the left was off by .02."""
    model, batch = made(name)
    block = without_dropout(model).get_submodule(CASES[name].block)
    mask = batch["attention_mask"] if isinstance(batch, dict) else batch[1]
    real = mask.bool() if name == "tokens" else slice(None)
    weights = {"smart_weight": 0.5, "bregman_weight": 2.0}
    smart = SMART(model, task, epsilon=0.1, num_steps=2, noise_fn=noise_of, **weights)
    with torch.no_grad():  # away from the teacher
        for parameter in model.parameters():
            parameter.mul_(1.05)
    call(model, batch)
    with pytest.warns(UserWarning, match="D_Breg of the first batch"):  # the weights were moved on purpose
        value = smart(batch)
    found = torch.autograd.grad(value, model.parameters(), allow_unused=True)
    teacher = logits_of(call(smart.bregman.teacher, batch))[real].detach()
    smart.remove()
    seen = []

    def logits(hook) -> Tensor:
        handle = block.register_forward_hook(hook)
        outputs = logits_of(call(model, batch))[real]
        handle.remove()
        return outputs

    clean = logits(lambda module, args, output: seen.append(output))
    settings = {"epsilon": 0.1, "step_size": 0.1, "num_steps": 2, "noise_fn": noise_of}
    by_hand = SMARTLoss(lambda x: logits(lambda *_: x), divergence, **settings)
    expected = 0.5 * by_hand(seen[0], clean, mask) + 2 * divergence(clean, teacher)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = torch.autograd.grad(expected, model.parameters(), allow_unused=True)
    for mine, gradient in zip(found, gradients, strict=True):
        torch.testing.assert_close(mine, gradient)


# -------------------------------------------------------------------------------- what a training does


def test_a_step_costs_the_ascent_and_two_passes():
    """Guards against a second clean pass: the user's own is there already."""
    model, batch = hf("bert"), text_batch()
    smart = SMART(model, "classification")
    ran = []
    model.bert.embeddings.register_forward_pre_hook(lambda module, args: ran.append(module))
    for steps in (0, 1, 3):
        smart.settings["num_steps"] = steps
        model(**batch)
        smart(batch)  # the very first call checks the model by a pass more
        ran.clear()
        model(**batch)
        smart(batch)
        assert len(ran) == 1 + steps + 1 + 1, "the user's pass, the ascent, the adversarial, the teacher's"


def test_smart_leaves_the_generator_and_the_model_as_they_were():
    """Guards against dropout masks, or evaluations, that depend on whether SMART is on."""
    states, evaluated = [], []
    for used in (False, True):
        model, batch = hf("bert"), text_batch()
        smart = SMART(model, "classification") if used else None
        torch.manual_seed(3)
        model(**batch)
        if smart:
            smart(batch)
        states.append(torch.get_rng_state())
        evaluated.append(model.eval()(**batch).logits)
    assert torch.equal(*states) and torch.equal(*evaluated)


def test_evaluation_adds_nothing_and_costs_nothing():
    """Guards against a dev loss with R_s in it."""
    model, batch = hf("bert").eval(), text_batch()
    smart = SMART(model, "classification")
    model(**batch)
    ran = []
    model.register_forward_pre_hook(lambda module, args: ran.append(module))
    value = smart(batch)
    assert value == 0 and not value.requires_grad and not ran
    assert smart.last == {}


def fail(model: nn.Module, batch: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="batch_size"):
        model(**other | {"labels": torch.tensor([0])})
    model.eval()(**other)


def look_again(model: nn.Module, batch: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    with torch.no_grad():
        model.eval()(**batch)
        model.train()(**batch)


BETWEEN = {
    "no_grad": lambda model, batch, other: torch.no_grad()(model)(**other),
    "eval": lambda model, batch, other: model.eval()(**other),
    "another batch": lambda model, batch, other: model(**other),
    "a copy": lambda model, batch, other: copy.deepcopy(model)(**other),
    "encoder alone": lambda model, batch, other: model.bert(other["input_ids"]),
    "a pass that fails": fail,
    "the batch again, for its accuracy": look_again,
}


@pytest.mark.parametrize("between", BETWEEN)
def test_passes_in_between(between):
    """Guards against the pass of another batch, of another mode, or of another look at the batch, that takes
    the place of the pass whose loss and dropout masks are those of the step."""
    model, other, batch = hf("bert"), hf("bert"), text_batch()
    if between == "another batch":  # SMART makes a clean pass of its own, with other masks
        model, other = without_dropout(model), without_dropout(other)
    smart = SMART(model, "classification", noise_fn=noise_of)
    torch.manual_seed(7)
    outputs = model(**batch)
    BETWEEN[between](model, batch, text_batch("left"))
    model.train()
    value = smart(batch)
    (outputs.loss + value).backward()
    assert value.item() == pytest.approx(penalty(other, batch).item(), rel=1e-6)


def test_a_batch_that_the_model_has_not_read():
    """Guards against a stale pass: texts without labels, a second call, and a call after backward need a
    clean pass of their own, whose dropout masks are replayed like any other's."""
    model, batch = hf("bert"), text_batch()
    smart = SMART(model, "classification", noise_var=0.0, num_steps=0)
    unlabelled = {name: value for name, value in batch.items() if name != "labels"}
    smart(unlabelled).backward()  # without any pass before
    outputs = model(**batch)
    outputs.loss.backward()
    smart(batch).backward()  # the graph of the model's pass is gone
    assert smart.last["smart"] == 0 and smart(batch).item() == smart.last["bregman"].item()


def test_the_teacher_follows_the_optimizer():
    """Guards against a teacher that averages some parameters only, starts elsewhere, swaps β and 1 - β, or
    has no dropout where the model has: `from_pretrained` leaves a model in eval mode."""
    model, batch = hf("bert").eval(), text_batch()
    smart = SMART(model, "classification", beta=0.75)
    start = [parameter.detach().clone() for parameter in model.parameters()]
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (model(**batch).loss + smart(batch)).backward()
    optimizer.step()
    smart.update()
    for average, first, now in zip(
        smart.bregman.teacher.parameters(), start, model.parameters(), strict=True
    ):
        torch.testing.assert_close(average, 0.75 * first + 0.25 * now)
    model(**batch)
    smart(batch)
    assert smart.last["bregman"] > 0


@pytest.mark.parametrize("frozen", ["embeddings", "all but the head"])
def test_frozen_layers(frozen):
    """Guards against a crash, or a gradient in what shall not move."""
    model, batch = hf("bert"), text_batch()
    (model.bert.embeddings if frozen == "embeddings" else model.bert).requires_grad_(False)
    smart = SMART(model, "classification")
    (model(**batch).loss + smart(batch)).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(gradients(model)) == trained and smart.last["smart"] > 0


@pytest.fixture
def one_process(tmp_path):
    """torch.distributed, with this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("how", ["gradient checkpointing", "DistributedDataParallel"])
def test_another_way_to_run_changes_nothing(one_process, how):
    """Guards against layers that are computed again, in the backward pass, from other embeddings; and against
    a wrapper that SMART cannot copy or call, or whose gradients miss the term."""
    found = []
    for used in (False, True):
        model, batch = hf("bert"), text_batch()
        called = model
        if used and how == "gradient checkpointing":
            model.activation_checkpointing_enable()
        elif used:
            called = nn.parallel.DistributedDataParallel(model)
        smart = SMART(called, "classification", noise_fn=noise_of)
        assert smart.model is model
        torch.manual_seed(5)
        (called(**batch).loss + smart(batch)).backward()
        found.append((smart.last["smart"], gradients(model)))
    (plain, expected), (value, again) = found
    torch.testing.assert_close(value, plain)
    for name, gradient in expected.items():
        torch.testing.assert_close(again[name], gradient, msg=name)


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_bf16(how):
    """Guards against an error about number types, and a teacher whose small steps are lost in bf16."""
    model, batch = hf("bert"), text_batch()
    if how == "bfloat16":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        smart = SMART(model, "classification", epsilon=0.04, beta=0.999)
        outputs = model(**batch)
        value = smart(batch)
    assert value.dtype == torch.float32 and smart.last["bregman"] == 0 and smart.last["smart"] > 1e-5
    (outputs.loss + value).backward()
    assert all(gradient.isfinite().all() for gradient in gradients(model).values())
    before = smart.bregman.teacher.classifier.weight.clone()
    with torch.no_grad():
        model.classifier.weight.mul_(1.05)
    smart.update()
    moved = (smart.bregman.teacher.classifier.weight - before) / before
    torch.testing.assert_close(moved, torch.full_like(moved, 5e-5), rtol=0.2, atol=0)


def test_a_compiled_model():
    """Guards against hooks that torch.compile leaves out, and a teacher with other dropout masks."""
    ids = text_batch()["input_ids"]
    values = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(60, 8), nn.Dropout(0.5), nn.Flatten(), nn.Linear(72, 3)).train()
        called = torch.compile(model, backend="eager") if compiled else model
        smart = SMART(called, "classification", noise_fn=noise_of)
        (called(ids).square().mean() + smart(ids)).backward()
        assert smart.last["bregman"] == 0
        values.append(smart.last["smart"])
    torch.testing.assert_close(*values)


def test_two_on_one_model():
    """Guards against one SMART that takes the perturbed pass of another for the clean one: two tasks with two
    heads, or a notebook's cell that is run twice."""
    model, batch = hf("bert"), text_batch()
    first = SMART(model, "classification", noise_fn=noise_of, bregman_weight=0)
    second = SMART(model, "classification", noise_fn=noise_of, bregman_weight=0)
    torch.manual_seed(7)
    model(**batch)
    values = [first(batch).item(), second(batch).item()]
    assert values[0] == values[1] == pytest.approx(penalty(model, batch, bregman_weight=0).item())


def test_hooks_go_with_their_owner():
    """Guards against a model that carries the hooks, and the teacher, of a SMART that nobody has any more."""
    model, batch = hf("bert"), text_batch()
    smart = SMART(model, "classification")
    teacher = weakref.ref(smart.bregman.teacher)
    model(**batch)
    del smart
    gc.collect()
    assert teacher() is None
    model(**batch).loss.backward()
    kept = SMART(model, "classification")
    kept.remove()
    model(**batch)
    with pytest.raises(RuntimeError, match="hooks were removed"):
        kept(batch)


# ---------------------------------------------------------------------------------------- the block


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        *((kind, "Embeddings") for kind in ("roformer", "mpnet", "albert", "layoutlm", "convbert")),
        *(("bloom", "LayerNorm"), ("gpt_neox", "Dropout"), ("opt", "Embedding")),
    ],
)
def test_blocks_of_many_architectures(kind, ending):
    """Guards against word embeddings perturbed where there is a block: there R_s is up to 60 times larger."""
    config = transformers.CONFIG_MAPPING[kind](**SIZES, pad_token_id=1)
    with torch.device("meta"):
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    assert type(embedding_block(model)).__name__.endswith(ending)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoders_of_encoder_decoders(kind):
    """Guards against the table that encoder and decoder share, and that neither of them calls."""
    layers = dict.fromkeys(("num_layers", "encoder_layers", "decoder_layers"), 2)
    model = hf(kind, **layers, d_model=32, decoder_start_token_id=1, pad_token_id=1, eos_token_id=2)
    batch = {"input_ids": torch.tensor([[7, 8, 9, 2], [7, 9, 2, 1]]), "labels": torch.tensor([0, 1])}
    batch["attention_mask"] = batch["input_ids"].ne(1).long()
    smart = SMART(model, "classification")
    (model(**batch).loss + smart(batch)).backward()
    assert smart.last["smart"] > 0 and smart.last["bregman"] == 0


def test_embeddings_that_are_changed_in_place():
    """Guards against embeddings that the model changes after the hook has kept them, as CTRL does."""
    ids = text_batch()["input_ids"]
    values = []
    for inplace in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(60, 8), nn.ELU(inplace=inplace), nn.Flatten(), nn.Linear(72, 3))
        values.append(penalty(model.train(), ids).item())
    assert values[0] == pytest.approx(values[1])


class Twice(nn.Module):
    """Two tables, and two texts through one encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(60, 8)
        self.places = nn.Embedding(9, 8)
        self.sum = nn.Identity()
        self.head = nn.Linear(8, 3)

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        vectors = [
            self.sum(self.words(ids) + self.places.weight).mean(1)
            for ids in (first, second)
            if ids is not None
        ]
        return self.head(sum(vectors))


def test_models_that_need_the_users_word():
    """Guards against a guess among several tables, and against a perturbation of one text of two."""
    model = Twice().train()
    ids = torch.randint(0, 60, (2, 9))
    with pytest.raises(ValueError, match=r"2 nn.Embedding \(words, places\); pass embedding_module="):
        SMART(model, "classification")
    for block in ("sum", model.sum):
        smart = SMART(model, "classification", embedding_module=block)
        assert smart(ids) > 0
    with pytest.raises(RuntimeError, match="2 times instead of once; pass another one by embedding_module="):
        smart((ids, ids))
    with pytest.raises(RuntimeError, match="0 times"):
        SMART(model, "classification", embedding_module=nn.Identity())(ids)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"task": "multi-label"}, "none of classification, regression, binary, multilabel"),
        ({"epsilon": 0.0}, "epsilon above 0"),
        ({"num_steps": -1}, "num_steps"),
        ({"bregman_weight": -1.0}, "at least 0"),
        ({"beta": 1.5}, "within 0 and 1"),
    ],
)
def test_wrong_settings_are_refused(wrong, error):
    """Guards against a regulariser switched off by a typo."""
    with pytest.raises(ValueError, match=error):
        SMART(**{"model": hf("bert"), "task": "classification"} | wrong)


# ------------------------------------------------------------------------------------------- traps


def test_labels_that_do_not_exclude_each_other():
    """Guards against a softmax over yes-or-no labels: nothing in the logits tells them from classes."""
    model, batch = made("yes-or-no labels")
    smart = SMART(model, "classification")
    model(**batch)  # transformers set problem_type here at the latest
    with pytest.raises(ValueError, match="use task='multilabel'"):
        smart(batch)


def test_an_epsilon_below_bf16_warns():
    """Guards against R_s of rounding errors: x + δ is x in most coordinates."""
    model, batch = hf("bert").bfloat16(), text_batch()
    for epsilon, expected in ((0.04, None), (1e-4, "below the resolution of torch.bfloat16 in [89].% of")):
        smart = SMART(model, "classification", epsilon=epsilon)
        model(**batch)
        if expected:
            with pytest.warns(UserWarning, match=expected):
                smart(batch)
            model(**batch)
        smart(batch)  # warns once, or never


def test_weights_that_are_loaded_later_warn():
    """Guards against a teacher of random weights, towards which the loaded ones are pulled."""
    model, batch = hf("bert"), text_batch()
    smart = SMART(model, "classification")
    torch.manual_seed(1)
    other = transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))
    model.load_state_dict(other.state_dict())
    model(**batch)
    with pytest.warns(
        UserWarning, match="D_Breg of the first batch is .*make SMART when the weights are loaded"
    ):
        smart(batch)
    resumed = SMART(model, "classification")
    resumed.load_state_dict(smart.state_dict())  # a teacher with weights of its own, and no warning
    model(**batch)
    resumed(batch)
    assert resumed.last["bregman"] > 1e-4


class Drawn(nn.Module):
    """A layer that draws its masks from numpy's generator."""

    def forward(self, x: Tensor) -> Tensor:
        import numpy as np

        return x * torch.from_numpy(np.random.rand(*x.shape) > 0.2).to(x.dtype)


def test_random_numbers_of_numpy_warn():
    """Guards against R_s that is mostly R-Drop, because a pass cannot be repeated."""
    model = nn.Sequential(nn.Embedding(60, 8), Drawn(), nn.Flatten(), nn.Linear(72, 3)).train()
    smart = SMART(model, "classification", bregman_weight=0)
    ids = torch.randint(0, 60, (8, 9))
    model(ids)
    with pytest.warns(UserWarning, match="R_s is .*cannot be repeated"):
        smart(ids)
