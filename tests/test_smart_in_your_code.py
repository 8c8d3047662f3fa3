"""docs/smart-in-your-code.md: every block runs as it stands, and does what the page says.

One process runs them all, in a folder that has mysmartloss.py alone: Trainer and Accelerate would take the
project's own `datasets` for Hugging Face's.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT

PAGE = ROOT / "docs" / "smart-in-your-code.md"
FENCE = re.compile(r"^```python\n(.+?)^```", flags=re.DOTALL | re.MULTILINE)
SECTIONS = {
    section.splitlines()[0]: FENCE.findall(section) for section in PAGE.read_text("utf-8").split("\n## ")[1:]
}
SECTIONS = {title: blocks for title, blocks in SECTIONS.items() if blocks}

# What a section is checked for beyond that it runs, with the names that it made.
TRAINER = """
plain = Trainer(trainer.model, arguments, eval_dataset=data)
assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
logged = [entry for entry in trainer.state.log_history if "delta_ratio" in entry]
assert len(logged) == 2 and all(entry["smart"] > 0 for entry in logged)

def gradients(rows, steps):
    model = your_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found, updates = {}, []
    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            found.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    given = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps, "max_steps": 1}
    torch.manual_seed(0)
    globals()["smart"] = SMART(model, task="classification", noise_fn=lambda x: (1e3 * x).sin())
    update = smart.update
    smart.update = lambda: updates.append(1) or update()
    settings = TrainingArguments("runs/check", **given, max_grad_norm=0.0, save_strategy="no", report_to=[],
                                 use_cpu=True, disable_tqdm=True)
    SmartTrainer(model, settings, train_dataset=data[:8], callbacks=[Teacher()]).train()
    assert len(updates) == 1, "the teacher moves once a step"
    return found

expected, accumulated = gradients(8, 1), gradients(4, 2)
for name, gradient in expected.items():
    torch.testing.assert_close(accumulated[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
"""
CHECKS = {
    "Hugging Face Trainer": TRAINER,
    "Accelerate": "accelerator.save_state('runs/state'); accelerator.load_state('runs/state')",
    "Lightning": """
checkpoint = {}
classifier.on_save_checkpoint(checkpoint)
Classifier().on_load_checkpoint(checkpoint)
assert fit.global_step == 2, "four batches, two of them a step"
""",
}
# Sections whose optimizer has moved the model away from its teacher.
TRAINED = {"Three lines", "Hugging Face Trainer", "Accelerate", "Lightning", "Gradient accumulation by hand"}

RUNNER = """
import copy, json, sys, traceback, warnings

warnings.filterwarnings("error", "SMART")
sections, checks, trained = json.load(open("sections.json"))
common = {"__name__": "__main__"}
exec(sections["Three lines"].pop(0), common)
exec("from smart_regularizer import SMART", common)
results = {}
for title, blocks in sections.items():
    names = dict(common)
    try:
        for block in blocks:
            exec(compile(block, title, "exec"), names)
        exec(compile(checks.get(title, ""), f"check of {title}", "exec"), names)
        last = {name: float(value) for name, value in names["smart"].last.items()}
        assert last["smart"] > 0 and last["delta_ratio"] > 0, last
        assert title not in trained or last["bregman"] > 0 or title in checks, last
        results[title] = "ran"
    except Exception:
        results[title] = traceback.format_exc()
    json.dump(results, open("results.json", "w"))
    if "accelerate" in sys.modules:  # one process has one precision, unless it is told to forget it
        sys.modules["accelerate"].state.AcceleratorState._reset_state(reset_partial_state=True)
    if title == "Which module is hooked":
        common["wide"] = names["wide"]
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, str]:
    """By section: `ran`, or the traceback."""
    folder: Path = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(ROOT / "mysmartloss.py", folder / "smart_regularizer.py")
    (folder / "sections.json").write_text(json.dumps([SECTIONS, CHECKS, sorted(TRAINED)]))
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", RUNNER]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (folder / "results.json").exists(), run.stderr
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("section", SECTIONS)
def test_the_blocks_run(section, results):
    """Guards against code that a reader copies and that does not run, or whose regulariser is dead."""
    assert results[section] == "ran", results[section]
