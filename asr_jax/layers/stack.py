"""Stacks of blocks: parameters stacked along a layer axis, and a scan over it."""

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx

from asr_jax.layers.residual import Shared

Block = TypeVar("Block", bound=nnx.Module)
Carry = TypeVar("Carry")
Input = TypeVar("Input")
Output = TypeVar("Output")


def stacked(
    make: Callable[[nnx.Rngs], Block], layers: int, *, shared_layers: int, rngs: nnx.Rngs
) -> Block:
    """Make one block that holds the parameters of all layers.

    The first axis of parameters is the layers. A Shared parameter exists once per group of
    `shared_layers` neighbors, so its first axis is the groups.
    """
    blocks = nnx.vmap(make)(rngs.split(layers))
    graphdef, shared, own = nnx.split(blocks, Shared, ...)
    return nnx.merge(graphdef, jax.tree.map(lambda a: a[::shared_layers], shared), own)


def scan_layers(
    body: Callable[[Carry, tuple[Block, Input]], tuple[Carry, Output]],
    carry: Carry,
    blocks: Block,
    inputs: Input,
    *,
    shared_layers: int,
) -> tuple[Carry, Output]:
    """Run body(carry, (block, input)) -> (carry, output) from the first layer to the last.

    Args:
        body: function of one layer.
        carry: initial carry.
        blocks: result of `stacked`.
        inputs: inputs of the layers, stacked, or None.
        shared_layers: as passed to `stacked`.

    Returns:
        The last carry, and the layers' outputs, stacked.
    """
    if shared_layers == 1:
        return jax.lax.scan(body, carry, (blocks, inputs))
    graphdef, shared, own = nnx.split(blocks, Shared, ...)

    def run_group(carry, group):
        shared, members = group

        def run_layer(carry, member):
            own, given = member
            return body(carry, (nnx.merge(graphdef, shared, own), given))

        return jax.lax.scan(run_layer, carry, members)

    members = jax.tree.map(
        lambda a: a.reshape(len(a) // shared_layers, shared_layers, *a.shape[1:]), (own, inputs)
    )
    carry, outputs = jax.lax.scan(run_group, carry, (shared, members))
    return carry, jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), outputs)
