"""An embedding whose vectors have the dtype of its parameter."""

from flax import nnx
from jaxtyping import Array, Float, Int


class Embedding(nnx.Embed):
    """nnx.Embed keeps to the dtype that its parameter had when it was made, float32, also where a
    step has cast the parameters; and all that its vectors meet would follow them. The gradient, a
    sum over the batch, is still summed up in float32."""

    def __call__(self, inputs: Int[Array, "*B"]) -> Float[Array, "*B D"]:
        return super().__call__(inputs).astype(self.embedding[...].dtype)
