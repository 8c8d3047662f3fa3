"""The checks of `benchmarks.cuda` that need no program: steps of models with random weights on random rows.

Each takes a `Setting` and returns lines of the table. Without a CUDA device they run in a small form.
"""

import contextlib
import itertools
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from base_bert import BertConfig
from benchmarks.training import Training
from bert import BertModel
from config import TrainConfig
from datasets import Batch
from multitask_classifier import MultitaskBERT
from mysmartloss import DropoutReplay, SMARTLoss, generator_state
from support.devices import start_watch
from tasks import TASKS

BASE = BertConfig()  # of bert-base-uncased
TINY = BertConfig(99, 32, 2, 2, 64)
TERMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "SMART": {"use_smart": True, "bregman_weight": 0.0},
    "SMART + Bregman": {"use_smart": True},
    "all terms": {"use_smart": True, "rdrop_weight": 0.5},
}
MIXED = ("sst", "para", "sts")
# dense products in bf16, per second, by a word of the device's name (NVIDIA's data sheets)
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}
# model FLOP utilisation; forward passes of a step, where a backward pass is 2, or 1 to the input alone
GOALS = {"plain": (0.45, 3), "SMART": (0.40, 8)}


@dataclass(frozen=True)
class Check:
    """One line of the table. verdict: ok, FAILED, not run; met or missed for a speed; empty: not judged."""

    what: str
    found: str
    verdict: str = ""


@dataclass(frozen=True)
class Setting:
    """Where the checks run, and how large they are. folder: for what they write."""

    device: torch.device
    folder: Path

    @property
    def small(self) -> bool:
        return self.device.type != "cuda"

    @property
    def encoder(self) -> BertConfig:
        return TINY if self.small else BASE


def verdict(right: bool) -> str:
    return "ok" if right else "FAILED"


def new_training(
    setting: Setting,
    terms: str,
    precision: str = "fp32",
    dropout: float = 0.1,
    device: Any = None,
    compile_it: bool = False,
) -> Training:
    """A model with seeded random weights, and what trains it."""
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    bert = BertModel(BertConfig(**asdict(setting.encoder) | rates))
    model = MultitaskBERT(bert, "mean", dropout, precision, MIXED).to(device or setting.device).train()
    if compile_it:
        bert.compile_layers()
    return Training(model, TrainConfig(precision=precision, **TERMS[terms]))


def new_batch(rows: int, tokens: int, masked: bool = True, seed: int = 0) -> Batch:
    """Random rows, on the host, with labels that every task accepts."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(tokens) < tokens - torch.arange(rows)[:, None] % (tokens // 2)
    ids = torch.randint(1, TINY.vocab_size, (rows, tokens), generator=draw)
    labels = torch.randint(0, 2, (rows,), generator=draw).float()
    return Batch(np.arange(rows), ids, None, mask if masked else None, labels, int(mask.sum()), seed)


def take_steps(ours: Training, count: int, rows: int, tokens: int, masked: bool = True) -> list[Tensor]:
    """Steps on the three tasks in turn, each on a new batch; returns their total losses, on the device."""
    totals = []
    for k in range(count):
        batch = new_batch(rows, tokens, masked, k).to(ours.device)
        losses = ours.step(TASKS[MIXED[k % 3]], batch, measure=k < 3)
        totals.append(losses["total"].detach())
    return totals


def largest_difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Largest relative difference of two series of losses."""
    a, b = (torch.stack(series).double().cpu() for series in (one, other))
    return float(((a - b).abs() / b.abs()).max())


# ------------------------------------------------------------------------------------------- checks


def parity(setting: Setting) -> list[Check]:
    """Losses of 20 steps on the device and on the CPU: fp32, dropout 0, all terms."""
    found = {}
    for device in (setting.device, torch.device("cpu")):
        found[device] = take_steps(new_training(setting, "all terms", dropout=0.0, device=device), 20, 8, 32)
    off = largest_difference(found[setting.device], found[torch.device("cpu")])
    return [Check("losses of 20 steps beside the CPU's, fp32", f"differ by {off:.1e}", verdict(off <= 1e-4))]


def replay(setting: Setting) -> list[Check]:
    """R_s(x, x) and D_Breg(θ, θ) in train mode with dropout: exact zeros, with each kernel of attention."""
    kernels = ["default"] if setting.small else ["default", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"]
    checks = []
    for name, precision in itertools.product(kernels, ("fp32", "bf16", "fp16")):
        largest = {}
        for shown, masked in {"masked": True, "dense": False}.items():
            try:
                with contextlib.nullcontext() if name == "default" else sdpa_kernel(SDPBackend[name]):
                    largest[shown] = largest_divergence(setting, precision, masked)
            except RuntimeError as error:
                if not re.search("No available kernel|No viable backend", str(error)):
                    raise
        found = ", ".join(f"{shown} {value:g}" for shown, value in largest.items())
        right = verdict(not any(largest.values())) if largest else "not run"
        what = f"R_s(x, x), D_Breg(θ, θ): {name.lower()}, {precision}"
        checks.append(Check(what, found or "no such kernel", right))
    return checks


def largest_divergence(setting: Setting, precision: str, masked: bool, compile_it: bool = False) -> float:
    """The largest of R_s at δ = 0, as in the ascent and as in the loss, and D_Breg of a new teacher."""
    ours = new_training(setting, "SMART + Bregman", precision, compile_it=compile_it)
    model = ours.model
    batch = new_batch(8, 32, masked).to(setting.device)
    assert ours.teacher is not None
    divergence = TASKS["sst"].divergence
    generator = generator_state(setting.device)
    embeddings = model.bert.embed(batch.input_ids)
    encode = DropoutReplay(lambda x: model.logits("sst", x, batch.attention_mask))
    logits = encode(embeddings)
    smart = SMARTLoss(encode, divergence)
    zero = torch.zeros_like(embeddings.detach())
    found = [smart.at(zero.clone().requires_grad_(), embeddings.detach(), logits)]
    found.append(smart.at(zero, embeddings, logits))
    found.append(ours.teacher(logits, lambda teacher: teacher("sst", *batch.inputs), divergence, generator))
    return float(torch.stack([value.detach().float() for value in found]).abs().max())  # NaN stays NaN


def synchronisations(setting: Setting) -> list[Check]:
    """20 steps that may not sync the GPU; without a GPU on the device `meta`, which has no numbers."""
    if setting.small:
        take_steps(new_training(setting, "all terms", device="meta"), 20, 4, 16)
        return [Check("a step does not sync the GPU", "20 steps on the meta device", "ok")]
    for precision in ("fp32", "bf16"):  # fp16: GradScaler syncs
        ours = new_training(setting, "all terms", precision)
        take_steps(ours, 3, 8, 64)
        torch.cuda.set_sync_debug_mode("error")
        try:
            take_steps(ours, 20, 8, 64)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [Check("a step does not sync the GPU", "20 steps in fp32, bf16", "ok")]


def memory(setting: Setting) -> list[Check]:
    """Peak of memory of a step at 32 x 512 tokens in bf16."""
    if setting.small:
        return [Check("memory, 32 x 512 tokens, bf16", "needs a CUDA device", "not run")]
    checks = []
    for terms in ("plain", "SMART", "SMART + Bregman"):
        ours = new_training(setting, terms, "bf16")
        torch.cuda.reset_peak_memory_stats()
        take_steps(ours, 3, 32, 512)
        peak = torch.cuda.max_memory_allocated() / 2**30
        checks.append(Check(f"memory, 32 x 512 tokens, bf16, {terms}", f"peak of {peak:.2f} GiB"))
        del ours
    return checks


def seconds_of(setting: Setting, step: Callable[[], object], count: int = 10) -> float:
    """Seconds of a step of work, the mean over `count`, after 3 that are not timed."""
    for _ in range(3):
        step()
    stop = start_watch(setting.device)
    for _ in range(count):
        step()
    return float(stop()) / count


def peak_of(setting: Setting) -> float:
    """Operations that the device can do in a second, in bf16: from its data sheet, or of a large product."""
    name = "" if setting.small else torch.cuda.get_device_name()
    if found := [peak for word, peak in PEAKS.items() if word in re.split(r"[\s-]", name)]:
        return found[0]
    size = 512 if setting.small else 8192
    x = torch.randn(size, size, dtype=torch.bfloat16, device=setting.device)
    return 2 * size**3 / seconds_of(setting, lambda: x @ x)


def flops(setting: Setting) -> list[Check]:
    """Model FLOP utilisation, plain and SMART, beside peers in the same run."""
    rows, tokens = (8, 32) if setting.small else (256, 128)
    shape = setting.encoder
    peak = peak_of(setting)
    checks = []
    for terms, (goal, passes) in GOALS.items():
        ours = new_training(setting, terms, "bf16")
        batch = new_batch(rows, tokens, masked=False).to(setting.device)
        seconds = seconds_of(setting, partial(ours.step, TASKS["sst"], batch))
        layers = sum(p.numel() for name, p in ours.model.named_parameters() if "bert_layers" in name)
        forward = rows * tokens * (2 * layers + 4 * shape.num_hidden_layers * tokens * shape.hidden_size)
        used = forward * passes / seconds / peak
        met = "" if setting.small else "met" if used >= goal else "missed"
        what = f"FLOP utilisation, {terms}, {rows} x {tokens} tokens, bf16"
        checks.append(Check(what, f"{used:.3f} (goal {goal}), {1000 * seconds:.1f} ms a step", met))
        try:
            theirs = seconds_of(setting, peer_step(setting, terms, ours.model, batch))
            shown = f"{1000 * theirs:.1f} ms a step, {theirs / seconds:.2f} times ours"
            checks.append(Check(f"  {PEERS[terms]}", shown))
        except ImportError as error:
            checks.append(Check(f"  {PEERS[terms]}", f"{error.name} is not installed", "not run"))
    return checks


PEERS = {"plain": "transformers, sdpa, fused AdamW", "SMART": "the same with smart-pytorch"}


def peer_step(setting: Setting, terms: str, ours: MultitaskBERT, batch: Batch) -> Callable[[], object]:
    """A training step as a careful user of the packages would write it, on the same batch."""
    import transformers  # here, because the list runs without the peers

    from benchmarks import peers

    sizes: dict[str, Any] = asdict(setting.encoder) | {"attn_implementation": "sdpa"}
    bert = transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False)
    peer = peers.Peer(ours, bert).to(setting.device).train()
    optimizer = peers.fused_adamw(peer.parameters())
    loss = {"plain": peers.plain_loss, "SMART": peers.smart_loss}[terms]

    def step() -> None:
        with torch.autocast(setting.device.type, torch.bfloat16):
            value = loss(peer, TASKS["sst"], batch)
        peers.step(peer, optimizer, value)

    return step


def compiled(setting: Setting) -> list[Check]:
    """--compile: losses without dropout beside those of plain Python, replayed dropout, and its gain."""
    rows, tokens = (8, 16) if setting.small else (256, 128)
    totals = []
    seconds = []
    for compile_it in (False, True):
        ours = new_training(setting, "SMART + Bregman", dropout=0.0, compile_it=compile_it)
        totals.append(take_steps(ours, 6, 8, tokens))
        ours = new_training(setting, "SMART + Bregman", "bf16", compile_it=compile_it)
        batch = new_batch(rows, tokens, masked=False).to(setting.device)
        seconds.append(seconds_of(setting, partial(ours.step, TASKS["sst"], batch)))
        del ours
    off = largest_difference(*totals)
    ratio = f"bf16 with dropout: {seconds[1] / seconds[0]:.2f} of the time"
    largest = largest_divergence(setting, "bf16", masked=True, compile_it=True)
    return [
        Check("--compile: losses of 6 steps, fp32", f"differ by {off:.1e}", verdict(off <= 1e-3)),
        Check("--compile: R_s(x, x), D_Breg(θ, θ), bf16", f"masked {largest:g}", verdict(largest == 0)),
        Check(f"--compile: a step of {rows} x {tokens} tokens", ratio),
    ]
