"""What is known of a machine, and what is not."""

from __future__ import annotations

import pytest

from notan.auto.look import look_at_machine
from notan.errors import ConfigError


def test_this_machine_is_described() -> None:
    machine = look_at_machine("cpu", lambda *_: 0.1)
    assert (machine.device, machine.threads) == ("cpu", 1)
    assert machine.in_words().startswith("cpu, 1 thread, free memory ")


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="--device gpu"):
        look_at_machine("gpu", lambda *_: 0.1)
