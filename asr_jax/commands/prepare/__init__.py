"""`asr-jax prepare SOURCE OUT`: write a prepared dataset."""

from asr_jax.commands.prepare.command import run as run
