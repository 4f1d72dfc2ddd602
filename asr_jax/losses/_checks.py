"""What a caller can get wrong, as one line that names the argument, its value and the rule."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from asr_jax.losses._cells import Factorization
from asr_jax.losses._joint import Activation
from asr_jax.losses._lattice import Topology
from asr_jax.losses._mosaic_gpu_support import obstacle

Named = Literal["reference", "xla", "mosaic_gpu"]
Implementation = Named | None
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


def signed(*integers):
    """As int32: what is unsigned cannot be negated, and what is narrow overflows."""
    return tuple(x.astype(jnp.int32) for x in integers)


def check_objective(topology, factorization, fastemit_lambda) -> None:
    _check_choice("topology", topology, get_args(Topology))
    _check_choice("factorization", factorization, get_args(Factorization))
    if fastemit_lambda < 0:
        raise ValueError(f"{fastemit_lambda = }: must not be negative")


def check_durations(durations) -> None:
    whole = all(isinstance(d, int) and d >= 0 for d in durations)
    if not whole or len(set(durations)) < len(durations) or not any(durations):
        rule = "must be different whole numbers of frames, one of them positive"
        raise ValueError(f"{durations = }: {rule}")


def check_joint(
    encoded,
    predicted,
    kernel,
    bias,
    labels,
    encoded_lengths,
    label_lengths,
    *,
    blank_id,
    activation,
    chunk_frames=None,
    utterances_per_group=None,
    negligible_gradient=0.0,
    implementation=None,
    durations=(),
) -> None:
    """The arguments of every loss of a joint. The kernel's last columns are for the durations."""
    check_float("encoded", encoded, None, None, None)
    batch, _, width = encoded.shape
    check_integer("labels", labels, batch, None)
    check_float("predicted", predicted, batch, labels.shape[1] + 1, width)
    check_float("kernel", kernel, width, None)
    if bias is not None:
        check_float("bias", bias, kernel.shape[1])
    check_integer("encoded_lengths", encoded_lengths, batch)
    check_integer("label_lengths", label_lengths, batch)
    check_blank(blank_id, kernel.shape[1] - len(durations))
    _check_choice("activation", activation, get_args(Activation))
    if chunk_frames is not None and chunk_frames < 1:
        raise ValueError(f"{chunk_frames = }: must be positive, or None to choose")
    if utterances_per_group is not None and utterances_per_group < 1:
        raise ValueError(f"{utterances_per_group = }: must be positive, or None to choose")
    if not negligible_gradient >= 0:
        raise ValueError(f"{negligible_gradient = }: must not be negative")
    if implementation is not None:
        _check_choice("implementation", implementation, get_args(Named))
    if implementation == "mosaic_gpu":
        dtypes = encoded.dtype, predicted.dtype, kernel.dtype
        reason = "it knows no durations" if durations else None
        if reason := reason or obstacle(dtypes, width, jax.devices()[0]):
            raise ValueError(f"{implementation = }: {reason}; 'xla' runs everywhere")


def _check_choice(name, value, choices) -> None:
    if value not in choices:
        raise ValueError(f"{name} = {value!r}: must be one of {', '.join(choices)}")


def _check_shape(name, array, shape) -> None:
    fits = len(shape) == array.ndim and all(
        want in (None, size) for want, size in zip(shape, array.shape)
    )
    if not fits:
        rule = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}.shape = {array.shape}: must be ({rule})")
