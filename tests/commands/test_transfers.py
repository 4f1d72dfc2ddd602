"""The loop makes no implicit transfer between host and devices."""

import jax
import pytest

from asr_jax.training import loop


@pytest.fixture
def train(command, trained, tmp_path):
    """Return a function that takes the first steps of the tiny run again."""
    arguments = [tmp_path / "run" if a == trained.run else a for a in trained.arguments]
    return lambda: command(*arguments)


def test_implicit_transfer_of_a_batch_is_an_error(train, monkeypatch):
    def call(steps, state, batch):
        return next(iter(steps.compiled.values()))(state, batch)

    monkeypatch.setattr(loop.Steps, "__call__", call)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train()


def test_results_are_read_by_explicit_transfers(train, monkeypatch):
    """On a CPU, arrays are on the host already and the guard never fails: record its settings."""
    array, settings = type(jax.numpy.zeros(())), []

    def recorded(conversion):
        def convert(self, *arguments, **options):
            settings.append(jax.config.jax_transfer_guard)  # pyright: ignore
            return conversion(self, *arguments, **options)

        return convert

    for name in ("__float__", "__int__", "__bool__", "__index__", "item"):
        monkeypatch.setattr(array, name, recorded(getattr(array, name)))
    assert train().status == 0
    assert settings
    assert "disallow" not in settings
