"""Transfer between models with different labels: every entry moves with its label."""

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
    """Return parameters of which every entry is a different number."""
    numbers = iter(range(start, 10**6))
    fill = lambda *shape: jnp.array(
        [next(numbers) for _ in range(int(np.prod(shape)))], jnp.float32
    ).reshape(shape)
    return {
        "encoder": {"norm": {"scale": fill(width)}},
        "predictor": {"embedding": {"embedding": fill(labels, width)}},
        "joint": {"out": {"kernel": fill(width, columns), "bias": fill(columns)}},
    }


def test_entries_of_known_labels_move_and_others_keep_their_initial_values():
    old, new = params(5, 5 + 3, start=1000), params(6, 6 + 4, start=1)
    result = transferred(new, old, NEW_AXES, OLD_AXES)
    np.testing.assert_array_equal(result["encoder"]["norm"]["scale"], [1000, 1001])

    labels = {"<blk>": 0, "<unk>": 1, "a": 2, "c": 4}
    for n, label in enumerate(NEW):
        rows = [tree["predictor"]["embedding"]["embedding"] for tree in (result, old, new)]
        expected = rows[1][labels[label]] if label in labels else rows[2][n]
        np.testing.assert_array_equal(rows[0][n], expected)
    # The durations are 0, 1, 2 and 4; 4 is new.
    columns = {0: 0, 1: 1, 2: 4, 4: 2, 6: 5, 7: 6, 8: 7}
    for name in ("kernel", "bias"):
        of_result, of_old, of_new = (tree["joint"]["out"][name].T for tree in (result, old, new))
        for n in range(10):
            expected = of_old[columns[n]] if n in columns else of_new[n]
            np.testing.assert_array_equal(of_result[n], expected)
    assert shape_mismatches(new, old, OLD_AXES) == []


def test_equal_labels_give_the_same_model():
    old = params(5, 8, start=1000)
    result = transferred(params(5, 8, start=1), old, OLD_AXES, OLD_AXES)
    jax.tree.map(np.testing.assert_array_equal, result, old)


def test_missing_networks_are_ignored_and_other_differences_are_listed():
    old, new = params(5, 8, start=1000), params(6, 10, start=1)
    old["ctc_head"], new["decoder"] = {"bias": jnp.zeros(5)}, {"bias": jnp.ones(3)}
    del old["predictor"]
    result = transferred(new, old, NEW_AXES, OLD_AXES)
    assert result.keys() == new.keys() and shape_mismatches(new, old, OLD_AXES) == []
    for name in ("predictor", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, result[name], new[name])

    old, new = params(5, 8, start=1000), params(6, 6, start=1, width=3)
    new["decoder"] = new.pop("predictor")
    assert shape_mismatches(new, old, OLD_AXES) == [
        "encoder.norm.scale is (2) in the source, (3) in the config",
        "joint.out.kernel is (2, V) in the source, (3, V) in the config",
    ]
    del old["encoder"], old["joint"]["out"]["bias"]
    assert shape_mismatches(new, old, OLD_AXES)[::2] == [
        "encoder.norm.scale is missing in the source, (3) in the config",
        "joint.out.kernel is (2, V) in the source, (3, V) in the config",
    ]
