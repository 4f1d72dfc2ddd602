"""Small problems with ragged lengths, shared by the tests of the losses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from asr_jax.capacity.accelerators import target_devices


class Problem(NamedTuple):
    encoded: jax.Array
    predicted: jax.Array
    kernel: jax.Array
    bias: jax.Array
    labels: jax.Array
    encoded_lengths: jax.Array
    label_lengths: jax.Array

    @property
    def floats(self):
        return self[:4]

    @property
    def integers(self):
        return self[4:]

    def row(self, b):
        """Utterance b alone, without its padding, as NumPy arrays."""
        t, u = int(self.encoded_lengths[b]), int(self.label_lengths[b])
        cut = self.encoded[b, :t], self.predicted[b, : u + 1], *self[2:4], self.labels[b, :u]
        return tuple(np.asarray(x) for x in cut)


@pytest.fixture(scope="session")
def problem():
    def make(
        frame_lengths=(7, 4, 1, 2),
        label_lengths=(3, 0, 2, 5),
        *,
        vocabulary=6,
        width=4,
        frames=8,
        seed=0,
        blank_id=0,
    ):
        rng = np.random.default_rng(seed)
        batch, labels = len(frame_lengths), max(label_lengths)
        normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
        symbols = rng.integers(0, vocabulary - 1, (batch, labels))
        return Problem(
            normal(batch, frames, width),
            normal(batch, labels + 1, width),
            normal(width, vocabulary),
            normal(vocabulary),
            jnp.asarray(symbols + (symbols >= blank_id), jnp.int32),
            jnp.asarray(frame_lengths, jnp.int32),
            jnp.asarray(label_lengths, jnp.int32),
        )

    return make


@pytest.fixture(scope="session")
def hopper():
    """A mesh of one H100 to compile for; this machine needs none."""
    try:
        devices, _ = target_devices("h100")
    except ValueError as error:
        pytest.skip(str(error))
    return jax.sharding.Mesh(np.array(devices), ("x",))
