"""Numbers that drift unseen: the losses of 30 steps beside the committed ones."""

import json

import pytest

import loss_curves


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_the_losses_are_the_committed_ones(tmp_path, no_course_data, task):
    """Guards against a change of any number in the step, in SMART or in a schedule that no other test sees.

    Losses and gradient norm to 1e-4 relative, R_s and D_Breg to 1e-7. If the change was meant:
    `python tests/loss_curves.py`, and the commit says why.
    """
    committed = json.loads(loss_curves.FILE.read_text())[task]
    found = loss_curves.curves(task, tmp_path)
    for part, values in committed.items():
        assert len(values) == 30
        near = {"abs": 1e-7, "rel": 0} if part in ("smart", "bregman") else {"rel": 1e-4}
        assert found[part] == pytest.approx(values, **near), part
