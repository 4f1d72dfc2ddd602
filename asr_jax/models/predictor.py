"""The prediction network over the labels emitted so far, stateless or recurrent.

Both kinds read a whole label sequence at once in training, and one label at a time in search:
`__call__(labels)[:, u]` equals the output after a `step` for each of the first u labels.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from asr_jax.config import PredictorConfig
from asr_jax.layers.dropout import dropout
from asr_jax.layers.embedding import Embedding
from asr_jax.layers.linear import Linear

BLANK_ID = 0
NONE_ID = -1
LSTMState = tuple[Float[Array, "B D"], Float[Array, "B D"]]


class StatelessPredictor(nnx.Module):
    """An embedding and one convolution over the last `context` labels (arXiv 2109.07513).

    Before the first label the context is [none, ..., none, blank]; none is embedded as zeros.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        context: int,
        embedding_width: int,
        width: int,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        self.embedding = Embedding(vocabulary_size, embedding_width, rngs=rngs)
        self.convolution = Linear(context * embedding_width, width, rngs=rngs)
        self.context = context
        self.dropout = dropout

    def __call__(
        self, labels: Int[Array, "B U"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B U1 D"]:
        """Return the output after 0, 1, ..., U labels; it ignores later labels."""
        history = jnp.concatenate([self.start(len(labels)), labels], axis=1)
        positions = labels.shape[1] + 1
        contexts = jnp.stack([history[:, k : k + positions] for k in range(self.context)], axis=-1)
        return self._output(contexts, key)

    def start(self, batch: int) -> Int[Array, "B K"]:
        """Return the state before the first label."""
        return jnp.full((batch, self.context), NONE_ID, jnp.int32).at[:, -1].set(BLANK_ID)

    def output(self, state: Int[Array, "B K"]) -> Float[Array, "B D"]:
        """Return the output for a state."""
        return self._output(state, None)

    def step(self, state: Int[Array, "B K"], labels: Int[Array, " B"]) -> Int[Array, "B K"]:
        """Return the state after one more label."""
        return jnp.concatenate([state[:, 1:], labels[:, None]], axis=1)

    def _output(
        self, contexts: Int[Array, "*B K"], key: Key[Array, ""] | None
    ) -> Float[Array, "*B D"]:
        embedded = self.embedding(jnp.maximum(contexts, 0)) * (contexts >= 0)[..., None]
        embedded = embedded.reshape(*contexts.shape[:-1], -1)
        return jax.nn.relu(self.convolution(dropout(embedded, self.dropout, key)))


class LSTMPredictor(nnx.Module):
    """An embedding and an LSTM layer (arXiv 1211.3711); first input blank, first state zero."""

    def __init__(
        self,
        vocabulary_size: int,
        *,
        embedding_width: int,
        width: int,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        self.embedding = Embedding(vocabulary_size, embedding_width, rngs=rngs)
        self.input = Linear(embedding_width, 4 * width, rngs=rngs)
        self.recurrent = Linear(width, 4 * width, use_bias=False, rngs=rngs)
        self.width = width
        self.dropout = dropout

    def __call__(
        self, labels: Int[Array, "B U"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B U1 D"]:
        """Return the output after 0, 1, ..., U labels; it ignores later labels."""
        inputs = jnp.pad(labels, ((0, 0), (1, 0)), constant_values=BLANK_ID)
        keys = (None, None) if key is None else jax.random.split(key)
        gates = self.input(dropout(self.embedding(inputs), self.dropout, keys[0]))
        zeros = jnp.zeros((len(labels), self.width), gates.dtype)

        def run(state, gates):
            state = self._cell(state, gates)
            return state, state[0]

        _, hidden = jax.lax.scan(run, (zeros, zeros), jnp.swapaxes(gates, 0, 1))
        return dropout(jnp.swapaxes(hidden, 0, 1), self.dropout, keys[1])

    def start(self, batch: int) -> LSTMState:
        """Return the state (hidden, cell) before the first label, after reading blank."""
        zeros = jnp.zeros((batch, self.width), self.recurrent.kernel.dtype)
        return self.step((zeros, zeros), jnp.full((batch,), BLANK_ID))

    def output(self, state: LSTMState) -> Float[Array, "B D"]:
        """Return the output for a state."""
        return state[0]

    def step(self, state: LSTMState, labels: Int[Array, " B"]) -> LSTMState:
        """Return the state after one more label."""
        return self._cell(state, self.input(self.embedding(labels)))

    def _cell(self, state: LSTMState, gates: Float[Array, "B G"]) -> LSTMState:
        hidden, cell = state
        i, f, g, o = jnp.split(gates + self.recurrent(hidden), 4, axis=-1)
        # + 1: the forget gate starts open, so gradients pass (Jozefowicz et al., 2015).
        cell = jax.nn.sigmoid(f + 1) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def make_predictor(
    config: PredictorConfig, vocabulary_size: int, *, rngs: nnx.Rngs
) -> StatelessPredictor | LSTMPredictor:
    """Make the predictor of a config, with random parameters."""
    kind = {
        "lstm": LSTMPredictor,
        "stateless": functools.partial(StatelessPredictor, context=config.context),
    }[config.kind]
    return kind(
        vocabulary_size,
        embedding_width=config.embedding_width,
        width=config.width,
        dropout=config.dropout,
        rngs=rngs,
    )
