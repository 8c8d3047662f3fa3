"""What the fuzz tests share: a folder with an encoder, data and a run."""

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

from fuzzing import call
from helpers import SAMPLE
from tiny_bert import letters_encoder


@pytest.fixture(scope="session", autouse=True)
def no_folder_left_behind(tmp_path_factory):
    """What hypothesis stores between runs goes to a temporary folder, not to the working directory."""
    set_hypothesis_home_dir(tmp_path_factory.mktemp("hypothesis"))


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """A folder with a tiny encoder, a dozen rows of each sample file, and a short run with SMART on them."""
    folder = tmp_path_factory.mktemp("fuzz")
    letters_encoder(folder / "encoder")
    (folder / "data").mkdir()
    for file in SAMPLE.glob("*.csv"):
        (folder / "data" / file.name).write_text("".join(file.read_text().splitlines(keepends=True)[:13]))
    places = ["--model_name_or_path", folder / "encoder", "--data_dir", folder / "data"]
    size = ["--epochs=1", "--steps_per_epoch=3", "--batch_size=4", "--tasks=sst,sts"]
    status, error = call([*places, *size, "--use_smart", "--output_dir", folder / "run"])
    assert status == 0, error
    return folder
