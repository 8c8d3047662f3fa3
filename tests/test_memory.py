"""The price of a training step in memory on shapes worked by hand, what is free, and what is refused."""

import re

import numpy as np
import pytest
import torch

from config import TrainConfig
from kill_and_resume import RUN, outcome
from support import memory
from support.memory import HOLES, Encoder, free_bytes, kept_by_layer, price, size_text
from tiny_bert import TINY, tiny_model
from training import longest_batch, memory_price, passes_kept

# 2 layers, H = 4, N = 2, I = 8
SMALL = Encoder(layers=2, hidden=4, heads=2, intermediate=8, parameters=1000, trained=900)


def test_a_layer_by_hand():
    """Guards against a matrix that is forgotten: attention's three are most of it for long rows."""
    # a token in fp32 on a CPU: 10 numbers of width H, 2 of width I, 3 for each head and token
    assert kept_by_layer(SMALL, 1, 5, narrow=False, fused=False) == 5 * 4 * (10 * 4 + 2 * 8 + 3 * 2 * 5)
    # in bf16: two LayerNorms' inputs stay fp32; the rounded weights are 4 H² + 2 HI
    weights = 2 * (4 * 16 + 2 * 32)
    by_token = 2 * (8 * 4 + 2 * 8 + 3 * 2 * 5) + 4 * 2 * 4
    assert kept_by_layer(SMALL, 3, 5, narrow=True, fused=False) == 15 * by_token + weights
    # on a GPU no (B,N,T,T) matrix, and a byte for an element of a mask
    assert (
        kept_by_layer(SMALL, 1, 5, narrow=True, fused=True) == 5 * (6 * 4 * 2 + 2 * 4 + 8 * 4 + 32) + weights
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layer_keeps_what_autograd_saves(precision):
    """Guards against a price of an encoder that has since been changed."""
    saved = {}

    def count(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    def kept(rows: int) -> int:
        model = tiny_model(precision=precision)
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output = model("sst", torch.ones(rows, 16, dtype=torch.long), torch.ones(rows, 16).bool())
        parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        del output
        return sum(t.untyped_storage().nbytes() for place, t in saved.items() if place not in parameters)

    config = TINY
    encoder = Encoder(2, config.hidden_size, config.num_attention_heads, config.intermediate_size, 0, 0)
    narrow = precision == "bf16"
    priced = [2 * kept_by_layer(encoder, rows, 16, narrow, fused=False) for rows in (8, 16)]
    # beside the layers: ids, embeddings, sentence vectors, means of LayerNorm
    assert kept(16) - kept(8) == pytest.approx(priced[1] - priced[0], rel=0.15)


def test_a_step_by_hand():
    """Guards against weights, moments or a teacher that are counted twice or not at all."""
    found = price(SMALL, (2, 5), (1, 1), passes=3, teacher=True, narrow=False, fused=True)
    assert found[:4] == (4000, 3600, 7200, 4000)
    layer = 10 * (6 * 4 * 4 + 2 * 4 + 8 * 4 + 2 * 8 * 4)
    workspace = 10 * 4 * (2 * 8 + 3 * 4)
    embeddings = 4 * 4 * 4 * 10
    assert found.activations == round(HOLES * (3 * 2 * layer + embeddings + workspace))
    assert found.total == sum(found)
    frozen = price(
        SMALL._replace(trained=0), (2, 5), (40, 5), passes=0, teacher=False, narrow=False, fused=True
    )
    assert frozen[1:4] == (0, 0, 0)
    assert frozen.activations == round(HOLES * (20 * layer + 20 * workspace))  # the evaluation's one layer


def test_passes_that_wait_for_their_backward():
    """Guards against a price of one pass for SMART, which keeps two, and against the teacher's pass, which
    keeps none."""
    smart = TrainConfig(use_smart=True)
    assert passes_kept(TrainConfig(), "sst", frozen=False) == 1
    assert passes_kept(smart, "sst", frozen=False) == 2
    assert passes_kept(TrainConfig(use_smart=True, rdrop_weight=1.0), "sst", frozen=False) == 3
    assert passes_kept(TrainConfig(), "sst", frozen=True) == 0 and passes_kept(smart, "sst", frozen=True) == 1
    model = tiny_model()
    plain, full = (
        memory_price(model, config, (4, 16), (4, 16)) for config in (TrainConfig(precision="fp32"), smart)
    )
    assert plain.teacher == 0 and full.teacher == plain.weights == plain.gradients == plain.moments / 2


def test_the_longest_batch():
    """Guards against a price of the average batch."""
    assert longest_batch([np.array([3, 9, 4]), np.array([5] * 40), np.array([])], 32, 256) == (32, 5)
    assert longest_batch([np.array([3, 9, 4])], 2, 8) == (2, 8)
    assert longest_batch([], 2, 8) == (0, 0)


# --------------------------------------------------------------------------------------------- free


def groups(folder, monkeypatch, lines: str, files: dict[str, str]) -> list[int]:
    """What is left by control groups that these files describe."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr(memory, "CGROUPS", folder)
    (folder / "self").write_text(lines)
    real = memory.Path
    monkeypatch.setattr(
        memory, "Path", lambda path: folder / "self" if path == "/proc/self/cgroup" else real(path)
    )
    return memory._free_of_groups()


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    """Guards against a run that a container kills, on a machine with much memory."""
    stat = "anon 5\ninactive_file 30\n"
    version2 = {"memory.max": "1000\n", "memory.current": "400\n", "memory.stat": stat}
    version2 |= {"a/memory.max": "max\n", "a/memory.current": "300\n", "a/memory.stat": stat}
    assert groups(tmp_path / "2", monkeypatch, "0::/a\n", version2) == [630]
    version1 = {"memory/b/memory.limit_in_bytes": "500", "memory/b/memory.usage_in_bytes": "490"}
    version1 |= {"memory/b/memory.stat": stat}
    assert groups(tmp_path / "1", monkeypatch, "9:cpu:/b\n4:memory:/b\n0::/\n", version1) == [40]
    assert groups(tmp_path / "0", monkeypatch, "0::/\n", {"x": ""}) == []


def test_what_is_free_is_shared_and_known_of_a_gpu(monkeypatch):
    """Guards against two processes that each count on all of the memory."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "_free_of_machine", lambda: [100])
    monkeypatch.setattr(memory, "_free_of_groups", lambda: [80])
    assert free_bytes(cpu) == 80
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert free_bytes(cpu) == 40
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    assert free_bytes(torch.device("cuda", 1)) == 7
    assert free_bytes(torch.device("meta")) is None
    monkeypatch.setattr(memory, "_free_of_machine", list)
    monkeypatch.setattr(memory, "_free_of_groups", list)
    assert free_bytes(cpu) is None


def test_sizes_are_short():
    """Guards against ten digits that nobody reads."""
    assert (size_text(12_345_678), size_text(1.94e9)) == ("12 MB", "1.9 GB")


# ------------------------------------------------------------------------------------------- refused

SHORT = [*RUN, "--epochs=1", "--steps_per_epoch=3", "--batch_size=16", "--precision=fp32"]


def test_a_batch_that_cannot_fit_is_refused_before_anything_is_lost(main, tmp_path, monkeypatch, capsys):
    """Guards against an hour of training, or an earlier run, lost to a batch that was too large from the
    start, and against advice that does not help."""
    assert main(*SHORT, "--output_dir", tmp_path / "run") == 0
    line = re.search(r"^memory: 16 rows of (\d+) tokens need about .+ free$", capsys.readouterr().out, re.M)
    assert line and "activations" in line[0] and "teacher" in line[0] and "moments" in line[0]
    before = outcome(tmp_path / "run")
    model = 4 * 1.1e6  # the tiny encoder with MiniLM's vocabulary: weights, gradients, moments, teacher
    monkeypatch.setattr(memory, "free_bytes", lambda device: round(5 * model))
    again = [*SHORT, "--overwrite_output_dir", "--output_dir", tmp_path / "run"]
    wide = [*again, "--batch_size=200", "--max_train_samples=200"]
    assert main(*wide) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "error: --batch_size 200: 200 rows of " in said and "are free" in said
    advice = dict(re.findall(r"--(batch_size|max_length) (\d+)(?= or|  ?would)", said))
    assert 1 <= int(advice["batch_size"]) < 200
    assert outcome(tmp_path / "run") == before
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    assert main(*again) == 2
    assert "take a smaller --model_name_or_path" in capsys.readouterr().err
    assert outcome(tmp_path / "run") == before


def test_the_advice_fits(main, tmp_path, monkeypatch, capsys):
    """Guards against a value that is refused in its turn."""
    wide = [*SHORT, "--max_train_samples=200", "--batch_size=200"]
    monkeypatch.setattr(memory, "free_bytes", lambda device: 30_000_000)
    assert main(*wide, "--output_dir", tmp_path / "run") == 2
    said = capsys.readouterr().err
    found = dict(re.findall(r"--(\w+) (\d+)", said.partition("are free")[2]))
    assert found
    for name, value in found.items():
        assert main(*wide, f"--{name}={value}", "--output_dir", tmp_path / name) == 0
