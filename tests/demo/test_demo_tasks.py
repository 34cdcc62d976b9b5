"""The embedded tasks beside the first one: other classes, or the same ones seen otherwise."""

import numpy as np
import pytest

from peft_vprompt.demo import CLASS_NAMES, DEMO_TASKS, demo_task


OTHERS = [name for name in DEMO_TASKS if name != "shapes"]


def test_the_first_task_is_the_one_that_is_meant():
    assert next(iter(DEMO_TASKS)) == "shapes" and DEMO_TASKS["shapes"].class_names == list(CLASS_NAMES)
    named, plain = (demo_task("validation", *name)[5]["image"] for name in (("shapes",), ()))
    assert named.tobytes() == plain.tobytes() == DEMO_TASKS["shapes"].picture("validation", 0, 5).tobytes()


@pytest.mark.parametrize("name", OTHERS)
def test_other_tasks_have_their_own_classes_or_a_look_of_their_own(name):
    task = DEMO_TASKS[name]
    names = task.class_names
    assert len(set(names)) == len(names) == 32
    first, again = (np.asarray(task.picture("test", 3, 0), dtype=float) for _ in range(2))
    assert np.array_equal(first, again) and first.shape == (48, 48, 3)
    if task.shift_of is None:
        assert not set(names) & set(CLASS_NAMES)
        assert not set(names[:16]) & set(names[16:])
    else:
        assert names == list(CLASS_NAMES) and task.shift_of == "shapes"
        usual = np.asarray(DEMO_TASKS["shapes"].picture("test", 3, 0), dtype=float)
        assert np.abs(first.mean((0, 1)) - usual.mean((0, 1))).max() > 5  # another look, not another draw


def test_a_task_that_is_none():
    with pytest.raises(ValueError, match="shapes, toys, signs, dusk, mosaic, sketch. Received: 'night'"):
        demo_task("test", "night")
