"""Fixtures that more than one test file uses."""

import os
from pathlib import Path

import pytest

import base_bert


@pytest.fixture
def course_data() -> Path:
    """Folder of the course's files, which are no part of this project."""
    if "SMART_BERT_DATA_DIR" not in os.environ:
        pytest.skip("SMART_BERT_DATA_DIR is not set, so there are no course files to read")
    return Path(os.environ["SMART_BERT_DATA_DIR"])


@pytest.fixture(scope="session")
def tokenizer():
    return base_bert.load_tokenizer()
