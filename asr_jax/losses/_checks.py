"""Checks of arguments; each error is one line that names the argument, its value and the rule."""

import math
import operator
from typing import get_args

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from asr_jax.losses._arguments import Computation, JointArguments, Named
from asr_jax.losses._cells import Factorization
from asr_jax.losses._joint import Activation
from asr_jax.losses._lattice import Topology
from asr_jax.losses._mosaic_gpu_support import obstacle

FLOATS = ("float16", "bfloat16", "float32")
MOST_DROPOUT = 0.99  # it is rounded to 1/256, and must leave something


def check_float(name, array, *shape) -> None:
    """Require a float array of this shape, where None stands for any size."""
    if _dtype(name, array) not in FLOATS:
        raise ValueError(f"{name}.dtype = {array.dtype}: must be one of {', '.join(FLOATS)}")
    _check_shape(name, array, shape)


def check_integer(name, array, *shape) -> None:
    """Require an integer array of this shape."""
    if not jnp.issubdtype(_dtype(name, array), jnp.integer):
        raise ValueError(f"{name}.dtype = {array.dtype}: must be an integer type")
    _check_shape(name, array, shape)


def check_blank(blank_id, vocabulary: int) -> None:
    if not 0 <= _integer("blank_id", blank_id) < vocabulary:
        raise ValueError(f"blank_id = {blank_id}: must lie in 0..{vocabulary - 1}")


def as_int32(*integers):
    """Cast to int32, clipped: unsigned lengths cannot be negated, and narrow ones overflow."""
    limits = jnp.iinfo(jnp.int32)

    def cast(x):
        own = jnp.iinfo(x.dtype)
        clipped = jnp.clip(x, max(own.min, limits.min), min(own.max, limits.max))
        return clipped.astype(jnp.int32)

    return tuple(map(cast, integers))


def check_objective(topology, factorization, fastemit_lambda) -> None:
    _check_choice("topology", topology, get_args(Topology))
    _check_choice("factorization", factorization, get_args(Factorization))
    _check_finite("fastemit_lambda", fastemit_lambda)
    if fastemit_lambda < 0:
        raise ValueError(f"{fastemit_lambda = }: must not be negative")


def check_durations(durations) -> tuple[int, ...]:
    """Return the durations as integers."""
    try:
        frames = tuple(operator.index(d) for d in durations)
    except TypeError:
        frames = ()
    if min(frames, default=-1) < 0 or len(set(frames)) < len(frames) or not any(frames):
        rule = "must be distinct integers of frames, none negative, one positive"
        raise ValueError(f"{durations = }: {rule}")
    return frames


def check_sigma(sigma) -> None:
    _check_finite("sigma", sigma)


def check_joint(
    joint: JointArguments, computation: Computation, *, blank_id, durations: tuple[int, ...] = ()
) -> None:
    """Check what every loss of a joint takes. The kernel's last columns are for the durations."""
    encoded, predicted, kernel, bias, labels, encoded_lengths, label_lengths, _ = joint
    check_float("encoded", encoded, None, None, None)
    batch, _, width = encoded.shape
    check_integer("labels", labels, batch, None)
    check_float("predicted", predicted, batch, labels.shape[1] + 1, width)
    check_float("kernel", kernel, width, None)
    if bias is not None:
        check_float("bias", bias, kernel.shape[1])
    check_integer("encoded_lengths", encoded_lengths, batch)
    check_integer("label_lengths", label_lengths, batch)
    for name, array in zip(JointArguments._fields, joint[:7]):
        _check_axes(name, array)
    symbols = kernel.shape[1] - len(durations)
    if symbols < 1:
        rule = f"must have a column for each of {len(durations)} durations and for each symbol"
        raise ValueError(f"kernel.shape = {kernel.shape}: {rule}")
    check_blank(blank_id, symbols)
    _check_computation(computation)
    if computation.implementation == "mosaic_gpu":
        dtypes = encoded.dtype, predicted.dtype, kernel.dtype
        reason = "it does not support dropout" if computation.dropout else None
        reason = "it does not support durations" if durations else reason
        if reason := reason or obstacle(dtypes, width, jax.devices()[0]):
            raise ValueError(f"implementation = 'mosaic_gpu': {reason}; 'xla' runs everywhere")


def _check_computation(computation: Computation) -> None:
    _check_choice("activation", computation.activation, get_args(Activation))
    for name in ("chunk_frames", "utterances_per_group"):
        value = getattr(computation, name)
        if value is not None and _integer(name, value) < 1:
            raise ValueError(f"{name} = {value}: must be positive, or None to choose automatically")
    negligible_gradient = computation.negligible_gradient
    _check_finite("negligible_gradient", negligible_gradient)
    if not negligible_gradient >= 0:
        raise ValueError(f"{negligible_gradient = }: must not be negative")
    _check_finite("dropout", computation.dropout)
    if not 0 <= computation.dropout <= MOST_DROPOUT:
        raise ValueError(f"dropout = {computation.dropout}: must lie in 0..{MOST_DROPOUT}")
    if computation.implementation is not None:
        _check_choice("implementation", computation.implementation, get_args(Named))


def _dtype(name, array) -> str:
    if not hasattr(array, "dtype"):
        raise ValueError(f"{name} = {array!r:.40}: must be an array")
    return str(array.dtype)


def _integer(name, value) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:  # jax's, of a traced value, too
        raise ValueError(f"{name} = {value!r:.60}: must be an integer") from None


def _check_finite(name, value) -> None:
    try:
        finite = math.isfinite(value)
    except TypeError:
        raise ValueError(f"{name} = {value!r:.60}: must be a number") from None
    if not finite:
        raise ValueError(f"{name} = {value}: must be finite")


def _check_axes(name, array) -> None:
    """Require Auto axes: tiles are sliced at data-dependent places, of unknown sharded types."""
    if array is None:
        return
    sharding = jax.typeof(array).sharding
    if any(sharding.spec) and AxisType.Explicit in sharding.mesh.axis_types:
        axes = ", ".join(map(str, filter(None, sharding.spec)))
        rule = "must use a mesh with axes of AxisType.Auto"
        raise ValueError(f"{name} is sharded over {axes}, of AxisType.Explicit: {rule}")


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
