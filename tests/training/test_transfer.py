"""Parameters of a model with other labels: every entry goes where its label is now."""

import jax
import jax.numpy as jnp
import numpy as np

from asr_jax.config import Config, ObjectiveConfig
from asr_jax.training.transfer import label_axes, shape_mismatches, transferred

OLD, NEW = ["<blk>", "<unk>", "a", "b", "c"], ["<blk>", "<unk>", "c", "d", "a", "e"]
TDT = Config(objective=ObjectiveConfig(kind="tdt", durations=(0, 1, 2)))
OLD_AXES = label_axes(TDT, OLD)
NEW_AXES = label_axes(Config(objective=ObjectiveConfig(kind="tdt", durations=(0, 1, 2, 4))), NEW)


def params(labels, columns, *, start, width=2):
    """Every entry another number."""
    numbers = iter(range(start, 10**6))
    fill = lambda *shape: jnp.array(
        [next(numbers) for _ in range(int(np.prod(shape)))], jnp.float32
    ).reshape(shape)
    return {
        "encoder": {"norm": {"scale": fill(width)}},
        "predictor": {"embedding": {"embedding": fill(labels, width)}},
        "joint": {"out": {"kernel": fill(width, columns), "bias": fill(columns)}},
    }


def test_entries_follow_their_labels_and_durations_and_others_stay_as_drawn():
    old, new = params(5, 5 + 3, start=1000), params(6, 6 + 4, start=1)
    found = transferred(new, old, NEW_AXES, OLD_AXES)
    np.testing.assert_array_equal(found["encoder"]["norm"]["scale"], [1000, 1001])

    labels = {"<blk>": 0, "<unk>": 1, "a": 2, "c": 4}
    for n, label in enumerate(NEW):
        rows = [tree["predictor"]["embedding"]["embedding"] for tree in (found, old, new)]
        expected = rows[1][labels[label]] if label in labels else rows[2][n]
        np.testing.assert_array_equal(rows[0][n], expected)
    # Of the durations 0, 1, 2 and 4 the last is new.
    columns = {0: 0, 1: 1, 2: 4, 4: 2, 6: 5, 7: 6, 8: 7}
    for name in ("kernel", "bias"):
        of_found, of_old, of_new = (tree["joint"]["out"][name].T for tree in (found, old, new))
        for n in range(10):
            expected = of_old[columns[n]] if n in columns else of_new[n]
            np.testing.assert_array_equal(of_found[n], expected)
    assert shape_mismatches(new, old, OLD_AXES) == []


def test_the_same_labels_give_the_same_model():
    old = params(5, 8, start=1000)
    found = transferred(params(5, 8, start=1), old, OLD_AXES, OLD_AXES)
    jax.tree.map(np.testing.assert_array_equal, found, old)


def test_networks_that_one_lacks_are_left_and_all_else_that_differs_is_told():
    old, new = params(5, 8, start=1000), params(6, 10, start=1)
    old["ctc_head"], new["decoder"] = {"bias": jnp.zeros(5)}, {"bias": jnp.ones(3)}
    del old["predictor"]
    found = transferred(new, old, NEW_AXES, OLD_AXES)
    assert found.keys() == new.keys() and shape_mismatches(new, old, OLD_AXES) == []
    for name in ("predictor", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, found[name], new[name])

    old, new = params(5, 8, start=1000), params(6, 6, start=1, width=3)
    new["decoder"] = new.pop("predictor")
    assert shape_mismatches(new, old, OLD_AXES) == [
        "encoder.norm.scale is (2) there, (3) here",
        "joint.out.kernel is (2, V) there, (3, V) here",
    ]
    del old["encoder"], old["joint"]["out"]["bias"]
    assert shape_mismatches(new, old, OLD_AXES)[::2] == [
        "encoder.norm.scale is missing there, (3) here",
        "joint.out.kernel is (2, V) there, (3, V) here",
    ]
