"""`asr-jax export RUN OUT`: write a trained model in a format that other programs can run."""

from asr_jax.commands.export.command import run as run
