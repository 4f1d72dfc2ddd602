"""`asr-jax prepare SOURCE OUT`: writes a prepared dataset."""

from asr_jax.commands.prepare.command import run as run
