"""`asr-jax export RUN OUT`: writes a trained model in a form that others can run."""

from asr_jax.commands.export.command import run as run
