"""What `pip install .` gives to others: one typed module without a name of this project's own."""

import json
import re
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import mysmartloss
from helpers import ROOT

SCRIPT = """
import importlib.metadata, importlib.util, json
import torch
from smart_regularizer import SMART, __version__

model = torch.nn.Sequential(
    torch.nn.Embedding(99, 16), torch.nn.Dropout(0.1), torch.nn.Flatten(), torch.nn.Linear(112, 5)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
ids, labels = torch.randint(0, 99, (4, 7)), torch.arange(4)

smart = SMART(model, task="classification", epsilon=0.04)
for _ in range(2):
    loss = torch.nn.functional.cross_entropy(model(ids), labels) + smart(ids)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    smart.update()

names = ("mysmartloss", "config", "data", "bert", "support", "evaluation", "optimizer", "tasks")
print(json.dumps({
    "last": {name: float(value) for name, value in smart.last.items()},
    "versions": [__version__, importlib.metadata.version("smart-regularizer")],
    "ours": [name for name in names if importlib.util.find_spec(name)],
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the clone without a download."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", folder, ROOT], check=True)
    (built,) = folder.iterdir()
    return built


def test_the_wheel_holds_one_typed_module(wheel):
    """Guards against `import datasets`, `config` or `data` that stop working for whoever installs this."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert files == {"smart_regularizer/__init__.py", "smart_regularizer/py.typed"}
        text = (ROOT / "mysmartloss.py").read_bytes()
        assert archive.read("smart_regularizer/__init__.py") == text
        (metadata,) = (
            archive.read(name).decode() for name in archive.namelist() if name.endswith("METADATA")
        )
    needs = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:")]
    assert len(needs) == 1 and needs[0].startswith("Requires-Dist: torch>=")
    assert f"Version: {mysmartloss.__version__}\n" in metadata


def test_three_lines_in_an_empty_environment(wheel, tmp_path):
    """Guards against a package that only runs inside the clone."""
    home = tmp_path / "empty"
    venv.create(home, with_pip=False)
    python = next(
        path for path in (home / "bin" / "python", home / "Scripts" / "python.exe") if path.exists()
    )
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, wheel], check=True)
    # torch is borrowed, not downloaded
    packages = next(home.rglob("site-packages"))
    (packages / "borrowed.pth").write_text(str(Path(torch.__file__).parent.parent))
    command = [python, "-I", "-c", SCRIPT]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["last"]["smart"] > 0 and found["last"]["bregman"] > 0 and found["last"]["delta_ratio"] > 0
    assert found["versions"] == [mysmartloss.__version__] * 2 and found["ours"] == []


def test_the_version_has_an_entry():
    """Guards against a release of which nobody can read what is new."""
    assert f"## {mysmartloss.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {mysmartloss.__version__}\n" in citation


def test_the_lock_holds_every_requirement_with_hashes():
    """Guards against a lock that is older than requirements.txt, or lets another file of a version pass."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entries = re.findall(
        r"^([a-z0-9-]+)==([\w.]+)(.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)+)", lock, re.MULTILINE
    )
    assert len(entries) == len(re.findall(r"^[a-z]", lock, re.MULTILINE))
    pins = {name: found for name, found, _ in entries}
    required = re.findall(
        r"^([a-zA-Z][\w-]*)(==[\w.]+)?", (ROOT / "requirements.txt").read_text(), re.MULTILINE
    )
    for name, exact in required:
        pin = pins[name.lower().replace("_", "-")]
        assert exact in ("", f"=={pin}"), name
    assert pins["torch"] == version("torch").split("+")[0]
