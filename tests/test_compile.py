"""--compile: the same losses, the same dropout masks again in every pass, and a clear word where it can't."""

import itertools
from unittest.mock import Mock

import pytest
import torch

from bert import run_layer
from config import TrainConfig
from dry_run import check_compiled
from kill_and_resume import RUN, outcome
from multitask_classifier import training_loss
from mysmartloss import BregmanProximal, SMARTLoss
from support.errors import UserError
from tasks import TASKS
from tiny_bert import tiny_batch, tiny_model

SHORT = [*RUN, "--epochs=1", "--steps_per_epoch=3", "--precision=fp32"]
ALL_TERMS = {"use_smart": True, "rdrop_weight": 1.0, "smart_epsilon": 0.1}


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that leaves the function as it is and counts its calls: real ones take minutes."""
    calls = []

    def compile(function, **options):
        assert function is run_layer and options == {"dynamic": True, "backend": "inductor"}

        def compiled(*arguments):
            calls.append(arguments)
            return function(*arguments)

        return compiled

    monkeypatch.setattr(torch, "compile", compile)
    return calls


def test_training_is_compiled_the_teacher_too_and_evaluation_is_not(compiler):
    """Guards against a teacher that runs the student's compiled layers: D_Breg would be 0 for ever."""
    model = tiny_model()
    names = set(model.state_dict())
    model.bert.compile_layers()
    teacher = BregmanProximal(model).teacher
    batch = tiny_batch("sst")
    model("sst", *batch.inputs)
    teacher("sst", *batch.inputs)
    layers = [layer for layer, *_ in compiler]
    assert layers == [*model.bert.bert_layers, *teacher.bert.bert_layers] and len(set(layers)) == 4
    model.eval()("sst", *batch.inputs)
    assert len(compiler) == 4
    assert set(model.state_dict()) == names


def test_a_run_that_compiles_ends_like_one_that_does_not(main, compiler, tmp_path, capsys):
    """Guards against random numbers that the trial of the compiler uses up."""
    assert main(*SHORT, "--output_dir", tmp_path / "plain") == 0
    assert not compiler and "compiling" not in capsys.readouterr().out
    assert main(*SHORT, "--compile", "--output_dir", tmp_path / "run") == 0
    assert compiler and "compiling the encoder: on a CPU its steps are slower" in capsys.readouterr().out
    assert outcome(tmp_path / "run") == outcome(tmp_path / "plain")


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    """Guards against a page of the compiler's own words, and against a compiler with random numbers of its
    own: R_s would be mostly R-Drop."""
    said = "InvalidCxxCompiler: No working C++ compiler found\nin torch._inductor.config"
    model = tiny_model()
    model.bert.run_layer = Mock(side_effect=RuntimeError(said))
    words = r"--compile: the encoder can't be compiled .*; leave the flag out$"
    with pytest.raises(UserError, match=words) as error:
        check_compiled(model, TrainConfig())
    assert "\n" not in str(error.value)

    def draws_anew(layer, hidden, mask):
        torch.manual_seed(next(seeds))
        return run_layer(layer, hidden, mask)

    seeds = itertools.count()
    model.bert.run_layer = draws_anew
    with pytest.raises(UserError, match="--compile: .* new dropout masks .* leave out one of the two"):
        check_compiled(model, TrainConfig(use_smart=True))
    check_compiled(model, TrainConfig())
    check_compiled(tiny_model(precision="bf16"), TrainConfig(use_smart=True))


@pytest.mark.slow  # a minute for the compiler
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_layers_compute_the_same(monkeypatch, precision):
    """Guards against losses that differ, graphs that can't be used twice, an ascent without gradient, and
    masks that are not replayed."""
    config = TrainConfig(**ALL_TERMS)
    losses = {}
    for compiled in (False, True):
        model = tiny_model(precision=precision)
        if compiled:
            model.bert.compile_layers()
            check_compiled(model, TrainConfig(use_smart=True))
        teacher = BregmanProximal(tiny_model(seed=1, precision=precision))
        torch.manual_seed(3)
        losses[compiled] = []
        for step, task in enumerate(("sst", "para", "sts") * 2):
            batch = tiny_batch(task).share(0, 1 + step % 2)  # 4 or 2 rows
            losses[compiled].append(training_loss(model, TASKS[task], batch, config, teacher))
            losses[compiled][-1]["total"].backward()
    for ours, plain in zip(losses[True], losses[False], strict=True):
        rtol = 0.0 if precision == "fp32" else 1e-3
        torch.testing.assert_close(ours, plain, rtol=rtol, atol=1e-4)
    monkeypatch.setattr(SMARTLoss, "perturbation", lambda self, embed, *_: torch.zeros_like(embed.detach()))
    zero = training_loss(model, TASKS["sst"], tiny_batch("sst"), config, BregmanProximal(model))
    assert zero["smart"].item() == 0 and zero["bregman"].item() == 0
