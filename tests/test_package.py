"""What `pip install .` gives to others: one typed module without a name of this project's own."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import mysmartloss
from helpers import ROOT


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
        (metadata,) = [archive.read(name) for name in archive.namelist() if name.endswith("METADATA")]
    needs = [line for line in metadata.decode().splitlines() if line.startswith("Requires-Dist:")]
    assert len(needs) == 1 and needs[0].startswith("Requires-Dist: torch>=")
    assert f"Version: {mysmartloss.__version__}\n" in metadata.decode()


def test_the_version_has_an_entry():
    """Guards against a release of which nobody can read what is new."""
    assert f"## {mysmartloss.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {mysmartloss.__version__}\n" in citation


def test_the_lock_holds_every_requirement_with_hashes():
    """Guards against a lock that is older than requirements.txt, or lets another file of a version pass."""
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    entry = r"^([a-z0-9-]+)==([\w.]+)(?:.*(?:\n    --hash=sha256:[0-9a-f]{64}.*)+)"
    pins = dict(re.findall(entry, lock, re.MULTILINE))
    assert len(pins) == len(re.findall(r"^[a-z]", lock, re.MULTILINE))
    required = (ROOT / "requirements.txt").read_text()
    for name, exact in re.findall(r"^([a-zA-Z][\w-]*)(?:==([\w.]+))?", required, re.MULTILINE):
        pin = pins[name.lower().replace("_", "-")]
        assert exact in ("", pin), name
    assert pins["torch"] == version("torch").split("+")[0]
