"""An invalid argument raises an error of one line that names it."""

import jax.numpy as jnp
import jaxtyping
import pytest

from asr_jax.losses import rnnt_loss, transducer_loss


@pytest.fixture(autouse=True)
def without_type_checks(monkeypatch):
    """Disable the test suite's shape checks, which would fail first; users run without them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def expect(match, loss, arguments, change):
    options = {k: v for k, v in change.items() if k not in arguments}
    arguments = {k: change.get(k, v) for k, v in arguments.items()}
    with pytest.raises(ValueError, match=match) as error:
        loss(*arguments.values(), **options)
    assert "\n" not in str(error.value)


LENGTHS = jnp.array([3, 2])
LABELS = jnp.ones((2, 2), jnp.int32)


@pytest.mark.parametrize(
    "change",
    [
        {"logits": jnp.zeros((2, 3, 4))},
        {"logits": jnp.zeros((2, 3, 3, 4), jnp.int32)},
        {"labels": jnp.ones((2, 3), jnp.int32)},
        {"labels": jnp.ones((2, 2))},
        {"logit_lengths": jnp.array([3])},
        {"label_lengths": jnp.array([[2, 2]])},
        {"blank_id": 4},
        {"blank_id": -1},
    ],
)
def test_rnnt_loss(change):
    arguments = dict(
        logits=jnp.zeros((2, 3, 3, 4)), labels=LABELS, logit_lengths=LENGTHS, label_lengths=LENGTHS
    )
    expect(f"^{next(iter(change))}", rnnt_loss, arguments, change)


@pytest.mark.parametrize(
    "change",
    [
        {"encoded": jnp.zeros((2, 5))},
        {"encoded": jnp.zeros((2, 3, 5), bool)},
        {"predicted": jnp.zeros((2, 2, 5))},
        {"predicted": jnp.zeros((2, 3, 6))},
        {"kernel": jnp.zeros((6, 4))},
        {"kernel": jnp.zeros((5, 4), jnp.int8)},
        {"bias": jnp.zeros(5)},
        {"labels": jnp.ones((3, 2), jnp.int32)},
        {"encoded_lengths": jnp.array([3.0, 2.0])},
        {"label_lengths": jnp.array([1, 2, 2])},
        {"blank_id": 4},
        {"activation": "gelu"},
        {"chunk_frames": 0},
        {"utterances_per_group": 0},
        {"negligible_gradient": -1e-9},
        {"topology": "ctc"},
        {"factorization": "sigmoid"},
        {"fastemit_lambda": -0.1},
        {"implementation": "mosaic_gpu"},
        {"implementation": "cuda"},
    ],
)
def test_transducer_loss(change):
    arguments = dict(
        encoded=jnp.zeros((2, 3, 5)),
        predicted=jnp.zeros((2, 3, 5)),
        kernel=jnp.zeros((5, 4)),
        bias=jnp.zeros(4),
        labels=LABELS,
        encoded_lengths=LENGTHS,
        label_lengths=LENGTHS,
    )
    expect(f"^{next(iter(change))}", transducer_loss, arguments, change)


def test_kernels_that_cannot_run_name_the_reason():
    arguments = jnp.zeros((2, 3, 5)), jnp.zeros((2, 3, 5)), jnp.zeros((5, 4)), None
    with pytest.raises(ValueError, match="'mosaic_gpu': .*(Hopper|older than 0.11).*'xla'"):
        transducer_loss(*arguments, LABELS, LENGTHS, LENGTHS, implementation="mosaic_gpu")
