"""Checks that a GPU must pass before its results are trusted. They run on the device that is there.

    python -m benchmarks.cuda
    python -m benchmarks.cuda --only parity replay

Without a CUDA device every check runs in a small form on the CPU, and no speed is judged. No data or weights
are needed: encoders are random, and runs train on data/sample. After a failed check the others still run.
Prints one table, writes JSON; exit status 1 if a check of correctness fails. docs/gpus.md has the last check,
a whole run on real data.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from base_bert import BertConfig, load_tokenizer
from benchmarks import device_checks
from benchmarks.command_line import HERE, call_each, parser_of, write_results
from benchmarks.device_checks import Check, Setting, verdict
from bert import BertModel
from support.devices import pick_device
from support.errors import one_line
from support.screen import cut, table

PROGRAM = HERE.parent / "multitask_classifier.py"
KILLS = HERE.parent / "tests" / "kill_and_resume.py"
RUN = ["--use_smart", "--max_train_samples=41", "--max_eval_samples=21", "--precision=fp32"]
RUN += ["--epochs=1", "--steps_per_epoch=12", "--save_steps=2", "--lr=1e-3", "--smart_epsilon=0.1"]
RUN += ["--deterministic"]
# The program, but process 1 is killed in its sixth step, as the kernel does when memory runs out.
DIES = """
import os, signal, sys
sys.path.insert(0, {project!r})
import multitask_classifier as program
from optimizer import AdamW
whole, steps = AdamW.step, []
def step(*arguments, **named):
    steps.append(1)
    if len(steps) == 6 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments, **named)
AdamW.step = step
sys.exit(program.main())
"""


# --------------------------------------------------------------------------- checks of whole programs


def new_encoder(setting: Setting, name: str, dropout: float) -> str:
    """A folder with a small random BERT and MiniLM's tokenizer."""
    folder = str(setting.folder / name)
    torch.manual_seed(0)
    config = BertConfig(30522, 64, 2, 4, 128, max_position_embeddings=64)
    config = replace(config, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    BertModel(config).save_pretrained(folder)
    load_tokenizer().save(f"{folder}/tokenizer.json")
    return folder


def run(*command: object, processes: int = 1, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A Python program on the sample, started by torchrun where it is several processes.

    With `check`, raises RuntimeError with the last line of its complaint if it fails.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("SMART_BERT_DATA_DIR", None)
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [*start, *map(str, command)]
    done = subprocess.run(words, env=environment, cwd=HERE.parent, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError((done.stderr.strip() or "no word").splitlines()[-1])
    return done


def processes(setting: Setting) -> list[Check]:
    """One and two processes take the same steps; one of two is killed, and the run is resumed."""
    name = "gloo" if setting.small else "nccl"
    if not setting.small and torch.cuda.device_count() < 2:
        return [Check("two processes on nccl", "needs two CUDA devices", "not run")]
    weights = {}
    without = ["--model_name_or_path", new_encoder(setting, "no dropout", 0.0), "--hidden_dropout_prob=0"]
    for count in (1, 2):
        folder = setting.folder / f"processes{count}"
        size = f"--batch_size={8 // count}"
        run(PROGRAM, *RUN, *without, size, "--output_dir", folder, processes=count)
        weights[count] = load_file(folder / "last" / "student.safetensors")
    off = max(float((weights[1][key] - weights[2][key]).abs().max()) for key in weights[1])
    checks = [Check(f"1 and 2 processes on {name}", f"weights differ by {off:.1e}", verdict(off <= 1e-5))]
    whole, broken = (setting.folder / each for each in ("whole", "broken"))
    encoder = ["--model_name_or_path", new_encoder(setting, "encoder", 0.1), "--batch_size=4"]
    run(PROGRAM, *RUN, *encoder, "--output_dir", whole, processes=2)
    script = setting.folder / "dies.py"
    script.write_text(DIES.format(project=str(HERE.parent)))
    ended = run(script, *RUN, *encoder, "--output_dir", broken, processes=2, check=False)
    clear = bool(ended.returncode) and "lost another one" in ended.stderr and "--resume" in ended.stderr
    said = "one line says how to resume" if clear else f"status {ended.returncode}, no clear message"
    checks.append(Check(f"one of 2 processes on {name} is killed", said, verdict(clear)))
    run(PROGRAM, "--resume", "--output_dir", broken, processes=2)
    same = [(f / "last" / "student.safetensors").read_bytes() for f in (whole, broken)]
    words = "bit for bit the run that was not killed" if same[0] == same[1] else "other weights"
    return [*checks, Check("  and resumed", words, verdict(same[0] == same[1]))]


def kills(setting: Setting) -> list[Check]:
    """Runs that are killed at random moments and resumed, with --deterministic."""
    folder = setting.folder / "kills"
    done = run(KILLS, "--kills", 5, "--folder", folder, "--deterministic", check=False)
    said = (done.stdout.strip() or done.stderr.strip() or "no word").splitlines()[-1]
    return [Check("killed and resumed on the device", said, verdict(done.returncode == 0))]


CHECKS: dict[str, Callable[[Setting], list[Check]]] = {
    "parity": device_checks.parity,
    "replay": device_checks.replay,
    "synchronisations": device_checks.synchronisations,
    "memory": device_checks.memory,
    "flops": device_checks.flops,
    "compile": device_checks.compiled,
    "processes": processes,
    "kills": kills,
}


def as_table(checks: list[Check]) -> str:
    """One line a check, at most 100 columns."""
    rows = [["what", "found", ""], *([check.what, cut(check.found, 42), check.verdict] for check in checks)]
    return table(rows)


def tried(name: str, setting: Setting) -> list[Check]:
    """What a check finds, also where it breaks."""
    try:
        found = CHECKS[name](setting)
    except torch.OutOfMemoryError as error:
        found = [Check(name, one_line(error), "not run")]
    except Exception as error:  # whatever breaks on a device that nobody has tried
        found = [Check(name, f"{type(error).__name__}: {one_line(error)}", "FAILED")]
    print(*(f"  {check}" for check in found), sep="\n", file=sys.stderr, flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser_of("benchmarks.cuda", __doc__, "cuda.json", data=False, only=CHECKS).parse_args(
        arguments
    )
    device = pick_device(use_gpu=False)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(device, Path(folder))
        checks, seconds = call_each(options.only, CHECKS, lambda name: tried(name, setting))
    results = {
        "device": str(device),
        "small": setting.small,
        "seconds": seconds,
        "checks": [asdict(check) for check in checks],
    }
    write_results(options.output, "benchmarks.cuda", arguments, results)
    print(f"{as_table(checks)}\n{sum(seconds.values()):.0f} s on {device}; written to {options.output}")
    return int(any(check.verdict == "FAILED" for check in checks))


if __name__ == "__main__":
    sys.exit(main())
