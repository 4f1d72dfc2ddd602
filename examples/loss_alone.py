"""The transducer loss without the rest of asr_jax: a joint network trained on two utterances.

    python examples/loss_alone.py

The loss takes the outputs of an encoder and a predictor, and the joint network's output layer. The
[batch, frames, labels + 1, vocabulary] tensor of logits never exists, in the forward pass or in the
backward pass.
"""

import jax
import jax.numpy as jnp

from asr_jax.losses import transducer_loss

BATCH, FRAMES, LABELS, WIDTH, VOCABULARY = 2, 50, 8, 64, 500


def mean_loss(params, labels, encoded_lengths, label_lengths):
    """Return the mean loss in nats per utterance; padding beyond the lengths has no effect."""
    losses = transducer_loss(
        params["encoded"],  # [B, T, D]: an encoder's output, here free parameters
        params["predicted"],  # [B, U + 1, D]: a predictor's output
        params["kernel"],  # [D, V]
        params["bias"],  # [V]
        labels,  # [B, U], symbol 0 is the blank
        encoded_lengths,
        label_lengths,
    )
    return losses.mean()


keys = jax.random.split(jax.random.key(0), 4)
params = {
    "encoded": jax.random.normal(keys[0], (BATCH, FRAMES, WIDTH)),
    "predicted": jax.random.normal(keys[1], (BATCH, LABELS + 1, WIDTH)),
    "kernel": 0.1 * jax.random.normal(keys[2], (WIDTH, VOCABULARY)),
    "bias": jnp.zeros(VOCABULARY),
}
labels = jax.random.randint(keys[3], (BATCH, LABELS), 1, VOCABULARY)
lengths = jnp.array([FRAMES, FRAMES - 13]), jnp.array([LABELS, LABELS - 3])

step = jax.jit(jax.value_and_grad(mean_loss))
for number in range(101):
    loss, gradients = step(params, labels, *lengths)
    params = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradients)
    if number % 20 == 0:
        print(f"step {number}: {loss:.2f} nats per utterance")
