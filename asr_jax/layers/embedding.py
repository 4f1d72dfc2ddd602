"""An embedding whose output has the dtype of its parameter."""

from flax import nnx
from jaxtyping import Array, Float, Int


class Embedding(nnx.Embed):
    """nnx.Embed, with its output in the current dtype of its parameter.

    nnx.Embed returns the dtype of its creation, float32, even after a step has cast the parameters,
    and would promote all later activations. The gradient, a sum over the batch, stays in float32.
    """

    def __call__(self, inputs: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        return super().__call__(inputs).astype(self.embedding[...].dtype)
