"""What a caller can get wrong, as one line that names the argument, its value and the rule."""

import jax.numpy as jnp

FLOATS = ("float16", "bfloat16", "float32")


def check_float(name, array, *shape) -> None:
    """A float array of this shape, where None stands for any size."""
    if str(array.dtype) not in FLOATS:
        raise ValueError(f"{name}.dtype = {array.dtype}: must be one of {', '.join(FLOATS)}")
    _check_shape(name, array, shape)


def check_integer(name, array, *shape) -> None:
    """An integer array of this shape."""
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise ValueError(f"{name}.dtype = {array.dtype}: must be an integer type")
    _check_shape(name, array, shape)


def check_blank(blank_id: int, vocabulary: int) -> None:
    if not 0 <= blank_id < vocabulary:
        raise ValueError(f"blank_id = {blank_id}: must lie in 0..{vocabulary - 1}")


def _check_shape(name, array, shape) -> None:
    fits = len(shape) == array.ndim and all(
        want in (None, size) for want, size in zip(shape, array.shape)
    )
    if not fits:
        rule = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}.shape = {array.shape}: must be ({rule})")
