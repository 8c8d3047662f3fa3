"""Where the time of a step goes: the share of each kind of operation, by torch.profiler. Knows no model."""

from collections.abc import Callable
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile, record_function

# kind -> names of torch's operations, without `aten::`. What stands in no line is the rest: gathering rows of
# embeddings, making batches, views, allocation, Python.
KINDS = {
    "matrix products": "mm addmm",
    "attention": "bmm baddbmm _softmax _softmax_backward_data _scaled_dot_product_flash_attention_for_cpu",
    "elementwise": "mul mul_ add add_ sub div div_ ge sum gelu gelu_backward native_layer_norm"
    " native_layer_norm_backward masked_fill masked_fill_ copy_ fill_ random_",
    "optimizer": "_fused_adamw_ _foreach_norm linalg_vector_norm",
}
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names.split()}
REST = "rest"


@dataclass(frozen=True)
class Shares:
    """Share of a step's time by kind. The shares add up to 1."""

    what: str
    shares: dict[str, float]

    def __str__(self) -> str:
        return f"{self.what}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in self.shares.items())


def shares_of(what: str, steps: int, step: Callable[[int], object]) -> Shares:
    """The shares over step(0), step(1), ... Each was called once before, without the profiler.

    An operation counts by its own time, without the operations that it calls. What is in no operation counts
    as rest, and so does what the profiler itself takes.
    """
    for k in range(steps):
        step(k)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for k in range(steps):
            with record_function("whole step"):
                step(k)
    seconds = dict.fromkeys([*KINDS, REST], 0.0)
    for event in profiler.key_averages():
        kind = KIND_OF.get(event.key.removeprefix("aten::"), REST)
        seconds[kind] += event.self_cpu_time_total
    total = sum(seconds.values())
    return Shares(what, {kind: spent / total for kind, spent in seconds.items()})
