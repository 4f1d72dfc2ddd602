"""Blocks whose parameters are stacked along a layer axis, and run by a loop over it."""

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
    """One block that holds the parameters of all layers.

    What is Shared exists once for every `shared_layers` neighbours: its first axis is that of the
    groups, where that of all other parameters is that of the layers.
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
    """Runs body(carry, (block, input)) -> (carry, output) from the first layer to the last.

    Args:
        body: of one layer.
        carry: what the first layer starts with.
        blocks: of `stacked`.
        inputs: of each layer, stacked; None for none.
        shared_layers: as given to `stacked`.

    Returns:
        What the last layer left, and the layers' outputs, stacked.
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
