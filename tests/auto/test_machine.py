"""What is known of a machine, and what is not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from notan.auto.look import free_memory, look_at_machine
from notan.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def test_free_memory_is_what_linux_says(tmp_path: Path) -> None:
    facts = tmp_path / "meminfo"
    facts.write_text("MemTotal:  100 kB\nMemAvailable:   42 kB\n")
    assert free_memory(facts) == 42 * 1024


@pytest.mark.parametrize("text", [None, "", "MemTotal: 9 kB", "MemAvailable:", "MemAvailable: x"])
def test_without_that_half_of_all_memory_counts(tmp_path: Path, text: str | None) -> None:
    facts = tmp_path / "meminfo"
    if text is not None:
        facts.write_text(text)
    found = free_memory(facts)
    assert found == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def test_memory_that_nobody_tells_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert free_memory(tmp_path / "absent") is None


def test_this_machine_is_described() -> None:
    machine = look_at_machine("cpu")
    assert (machine.device, machine.threads) == ("cpu", 1)
    assert machine.in_words().startswith("cpu, 1 thread, free memory ")


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="--device gpu"):
        look_at_machine("gpu")
