"""A finished run, for the tests of what it leaves."""

import pytest

from helpers import run_program
from short_runs import FAST


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory):
    """Folder of a short run on the sample with SMART."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SMART_BERT_DATA_DIR", raising=False)
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        assert run_program("--use_smart", "--bregman_beta", 0.5, *FAST, "--output_dir", folder) == 0
    return folder
