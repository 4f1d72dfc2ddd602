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
from asr_jax.layers.stack import stacked

BLANK_ID = 0
NONE_ID = -1
# The hidden state and the cell of the first layer, then those of the next.
LSTMState = tuple[Float[Array, "B D"], ...]


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


class LSTMLayer(nnx.Module):
    """The matrices of an LSTM layer that reads the layer below it."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.input = Linear(width, 4 * width, rngs=rngs)
        self.recurrent = Linear(width, 4 * width, use_bias=False, rngs=rngs)


class LSTMPredictor(nnx.Module):
    """An embedding and LSTM layers (arXiv 1211.3711); first input blank, first state zero.

    Each layer after the first reads the hidden states of the layer below. The output is the hidden
    state of the last layer.
    """

    def __init__(
        self,
        vocabulary_size: int,
        *,
        embedding_width: int,
        width: int,
        dropout: float,
        layers: int = 1,
        rngs: nnx.Rngs,
    ):
        self.embedding = Embedding(vocabulary_size, embedding_width, rngs=rngs)
        self.input = Linear(embedding_width, 4 * width, rngs=rngs)
        self.recurrent = Linear(width, 4 * width, use_bias=False, rngs=rngs)
        make = functools.partial(_make_layer, width)
        self.upper = stacked(make, layers - 1, shared_layers=1, rngs=rngs) if layers > 1 else None
        self.layers = layers
        self.width = width
        self.dropout = dropout

    def __call__(
        self, labels: Int[Array, "B U"], *, key: Key[Array, ""] | None = None
    ) -> Float[Array, "B U1 D"]:
        """Return the output after 0, 1, ..., U labels; it ignores later labels."""
        inputs = jnp.pad(labels, ((0, 0), (1, 0)), constant_values=BLANK_ID)
        number = self.layers + 1
        keys = [None] * number if key is None else [*jax.random.split(key, number)]
        x = dropout(self.embedding(inputs), self.dropout, keys[0])
        for (of_input, recurrent), key in zip(self._layers(), keys[1:], strict=True):
            x = dropout(self._hidden(recurrent, of_input(x)), self.dropout, key)
        return x

    def start(self, batch: int) -> LSTMState:
        """Return the state before the first label, after reading blank."""
        zeros = jnp.zeros((batch, self.width), self.recurrent.kernel.dtype)
        return self.step((zeros, zeros) * self.layers, jnp.full((batch,), BLANK_ID))

    def output(self, state: LSTMState) -> Float[Array, "B D"]:
        """Return the output for a state."""
        return state[-2]

    def step(self, state: LSTMState, labels: Int[Array, " B"]) -> LSTMState:
        """Return the state after one more label."""
        x, after = self.embedding(labels), ()
        for n, (of_input, recurrent) in enumerate(self._layers()):
            x, cell = self._cell(recurrent, (state[2 * n], state[2 * n + 1]), of_input(x))
            after += (x, cell)
        return after

    def _layers(self) -> list[tuple[nnx.Linear, nnx.Linear]]:
        """Return the matrices of every layer, for its input and for its state."""
        upper = [jax.tree.map(lambda a: a[n], self.upper) for n in range(self.layers - 1)]
        return [(layer.input, layer.recurrent) for layer in (self, *upper)]

    def _hidden(
        self, recurrent: nnx.Linear, gates: Float[Array, "B U1 G"]
    ) -> Float[Array, "B U1 D"]:
        """Return the hidden states of a layer, from the gates' sums over its inputs."""
        zeros = jnp.zeros((len(gates), self.width), gates.dtype)

        def run(state, gates):
            state = self._cell(recurrent, state, gates)
            return state, state[0]

        _, hidden = jax.lax.scan(run, (zeros, zeros), jnp.swapaxes(gates, 0, 1))
        return jnp.swapaxes(hidden, 0, 1)

    def _cell(
        self, recurrent: nnx.Linear, state: tuple[Array, Array], gates: Float[Array, "B G"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B D"]]:
        hidden, cell = state
        i, f, g, o = jnp.split(gates + recurrent(hidden), 4, axis=-1)
        # + 1: the forget gate starts open, so gradients pass (Jozefowicz et al., 2015).
        cell = jax.nn.sigmoid(f + 1) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def _make_layer(width: int, rngs: nnx.Rngs) -> LSTMLayer:
    return LSTMLayer(width, rngs=rngs)


def make_predictor(
    config: PredictorConfig, vocabulary_size: int, *, rngs: nnx.Rngs
) -> StatelessPredictor | LSTMPredictor:
    """Make the predictor of a config, with random parameters."""
    kind = {
        "lstm": functools.partial(LSTMPredictor, layers=config.layers),
        "stateless": functools.partial(StatelessPredictor, context=config.context),
    }[config.kind]
    return kind(
        vocabulary_size,
        embedding_width=config.embedding_width,
        width=config.width,
        dropout=config.dropout,
        rngs=rngs,
    )
