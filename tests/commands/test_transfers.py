"""The loop moves nothing between host and devices but what it means to."""

import jax
import pytest

from asr_jax.training import loop


@pytest.fixture
def train(command, trained, tmp_path):
    """Trains the tiny run's first steps again."""
    arguments = [tmp_path / "run" if a == trained.run else a for a in trained.arguments]
    return lambda: command(*arguments)


def test_a_batch_that_nobody_puts_on_the_devices_ends_training(train, monkeypatch):
    def call(steps, state, batch):
        return next(iter(steps.compiled.values()))(state, batch)

    monkeypatch.setattr(loop.Steps, "__call__", call)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train()


def test_results_are_got_by_name(train, monkeypatch):
    """A CPU's arrays are the host's already, and it lets them through: so no guard, but a look."""
    array, looks = type(jax.numpy.zeros(())), []

    def watched(conversion):
        def look(self, *arguments, **options):
            looks.append(jax.config.jax_transfer_guard)  # pyright: ignore
            return conversion(self, *arguments, **options)

        return look

    for name in ("__float__", "__int__", "__bool__", "__index__", "item"):
        monkeypatch.setattr(array, name, watched(getattr(array, name)))
    assert train().status == 0
    assert looks
    assert "disallow" not in looks
