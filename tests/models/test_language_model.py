"""The neural language model and its loss against explicit probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from asr_jax.config import Config, ObjectiveConfig, PredictorConfig
from asr_jax.models.language_model import LanguageModel
from asr_jax.training.objective import text_losses, utterance_losses

VOCABULARY = 5


def make(kind, dropout=0.0):
    config = Config(
        predictor=PredictorConfig(kind=kind, embedding_width=4, width=6, dropout=dropout),
        objective=ObjectiveConfig(kind="language_model"),
    )
    return config, LanguageModel(config, VOCABULARY, rngs=nnx.Rngs(1))


@pytest.mark.parametrize("kind", ["stateless", "lstm"])
def test_loss_is_minus_the_log_of_a_product_for_any_padding(kind):
    config, model = make(kind)
    texts = [[], [2], [4, 4, 1], [1, 2, 3, 4]]
    predictor = model.predictor
    for padding, width in [(0, 4), (3, 7), (99, 6)]:
        labels = np.full((len(texts), width), padding, np.int32)
        for row, text in enumerate(texts):
            labels[row, : len(text)] = text
        lengths = jnp.array([len(text) for text in texts])
        losses = text_losses(model, jnp.asarray(labels), lengths)
        for row, text in enumerate(texts):
            state, expected = predictor.start(1), 0.0
            for label in [*text, 0]:
                logits = np.asarray(model.out(predictor.output(state))[0], np.float64)
                expected -= logits[label] - np.log(np.exp(logits).sum())
                state = predictor.step(state, jnp.array([label]))
            np.testing.assert_allclose(losses[row], expected, rtol=1e-5)
    # The dispatch by objective gives the same loss.
    nothing = jnp.zeros((len(texts), 0, 80)), jnp.zeros(len(texts), jnp.int32)
    among = utterance_losses(model, *nothing, jnp.asarray(labels), lengths, config=config)
    assert among.keys() == {"loss"}
    np.testing.assert_array_equal(among["loss"], losses)


def test_probabilities_of_all_texts_sum_to_one():
    """The sum covers texts of up to 2 labels, and the probability that is left for longer ones."""
    _, model = make("lstm")
    one = jnp.arange(1, VOCABULARY)
    two = jnp.stack(jnp.meshgrid(one, one), axis=-1).reshape(-1, 2)
    padded = jnp.concatenate([jnp.zeros((1, 2), int), jnp.pad(one[:, None], ((0, 0), (0, 1))), two])
    lengths = jnp.array([0] + [1] * len(one) + [2] * len(two))
    ended = jnp.exp(-text_losses(model, padded, lengths)).sum()
    log_p = jax.nn.log_softmax(model(two))
    rows = jnp.arange(len(two))
    taken = log_p[rows, 0, two[:, 0]] + log_p[rows, 1, two[:, 1]]
    longer = jnp.exp(taken) * (1 - jnp.exp(log_p[:, 2, 0]))
    np.testing.assert_allclose(ended + longer.sum(), 1, rtol=1e-5)
