"""The machine under a run: what is asked for is there, or the error says what is."""

from __future__ import annotations

import logging
import os
import platform
import random
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from notan import runtime
from notan.errors import ConfigError
from notan.runtime import (
    _processor,
    choose_precision,
    choose_workers,
    count_cores,
    describe_hardware,
    find_device,
    free_memory,
    has_quick_bf16,
    how_busy,
    keep_freed_memory,
    limit_threads,
    seed_everything,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


def pretend(monkeypatch: pytest.MonkeyPatch, *, gpus: int, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("gpus", "mps", "chosen"),
    [(0, False, "cpu"), (1, False, "cuda:0"), (4, False, "cuda:0"), (0, True, "mps")],
)
def test_auto_takes_the_first_accelerator_that_is_there(
    monkeypatch: pytest.MonkeyPatch, gpus: int, mps: bool, chosen: str
) -> None:
    pretend(monkeypatch, gpus=gpus, mps=mps)
    assert find_device("auto") == torch.device(chosen)


def test_the_cpu_is_always_there() -> None:
    assert find_device("cpu") == CPU


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1"])
def test_a_gpu_is_taken_by_its_number(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch, gpus=2)
    assert find_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_there_is_refused_with_what_is(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pretend(monkeypatch, gpus=0)
    with pytest.raises(ConfigError, match=f"--device {name}: this machine .* offer cpu; choose"):
        find_device(name)


def test_a_second_gpu_that_is_not_there_is_refused_with_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, gpus=1)
    with pytest.raises(ConfigError, match=r"--device cuda:1: .* offer cpu, cuda:0; choose"):
        find_device("cuda:1")


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:x", "cuda:-1", "cuda:0:0", "", "CUDA", "cuda1", "tpu", "cuda: 0"]
)
def test_a_name_that_is_no_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"there is no such device.*auto, cpu, cuda"):
        find_device(name)


@pytest.mark.parametrize("name", ["cpu:1", "mps:3", "cuda:"])
def test_an_odd_number_behind_a_device_is_an_error_of_the_same_kind(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pretend(monkeypatch, gpus=0)
    with pytest.raises(ConfigError, match=f"--device {name}"):
        find_device(name)


def test_a_near_name_is_offered() -> None:
    with pytest.raises(ConfigError, match="did you mean 'cuda'"):
        find_device("cdua")


def test_a_cpu_computes_in_fp32_unless_asked() -> None:
    precision = choose_precision("auto", CPU)
    assert precision.dtype is torch.float32
    assert not precision.needs_scaler
    assert "cpu" in precision.why


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_computes_in_bf16_where_it_can(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bf16)
    assert choose_precision("auto", CUDA).dtype is dtype


def test_fp16_is_for_gpus_and_scales_its_gradients() -> None:
    assert choose_precision("fp16", CUDA).needs_scaler
    with pytest.raises(ConfigError, match=r"train\.precision=fp16: not on a CPU; choose bf16"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_precision_decides_what_a_layer_computes_in(name: str) -> None:
    precision = choose_precision(name, CPU)
    with precision.autocast():
        result = torch.nn.Conv2d(3, 1, 1)(torch.zeros(1, 3, 4, 4))
    assert result.dtype is precision.dtype
    assert precision.why == "as asked for"


@pytest.mark.parametrize(
    ("facts", "quick"),
    [
        (None, None),
        (b"\xff\xfe", None),
        (b"", None),
        (b"Features\t: fp asimd bf16\n", None),
        (b"flags\n", False),
        (b"flags\t: sse avx2\n", False),
        (b"model name: avx512_bf16\nflags\t: sse\n", False),
        (b"flags\t: sse avx512_bf16\n", True),
        (b"flags\t: amx_bf16 sse\n", True),
    ],
)
def test_bf16_is_quick_where_the_processor_says_so(
    tmp_path: Path, facts: bytes | None, quick: bool | None
) -> None:
    file = tmp_path / "cpuinfo"
    if facts is not None:
        file.write_bytes(facts)
    assert has_quick_bf16(file) is quick


@pytest.mark.parametrize(
    ("flags", "wanted", "warned"),
    [("avx2", "bf16", True), ("avx2", "fp32", False), ("avx2 amx_bf16", "bf16", False)],
)
def test_imitated_bf16_is_warned_of(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    flags: str,
    wanted: str,
    warned: bool,
) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text(f"flags\t: {flags}\n")
    monkeypatch.setattr("notan.runtime.PROCESSOR_FACTS", facts)
    with caplog.at_level(logging.WARNING, logger="notan"):
        choose_precision(wanted, CPU)
    assert ("train.precision=fp32" in caplog.text) is warned


@pytest.mark.parametrize(
    ("wanted", "device", "cores", "workers"),
    [
        (None, CPU, 64, 0),
        (None, CUDA, 64, 8),
        (None, CUDA, 2, 2),
        (None, CUDA, 1, 1),
        (3, CPU, 64, 3),
        (0, CUDA, 64, 0),
    ],
)
def test_workers_are_as_asked_else_none_on_a_cpu_and_up_to_eight_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    wanted: int | None,
    device: torch.device,
    cores: int,
    workers: int,
) -> None:
    monkeypatch.setattr(runtime, "count_cores", lambda: cores)
    assert choose_workers(wanted, device) == workers


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(1))  # noqa: NPY002


def test_a_seed_repeats_every_random_state() -> None:
    seed_everything(7)
    first = draws()
    seed_everything(7)
    again = draws()
    seed_everything(8)
    other = draws()
    assert first == again
    assert all(left != right for left, right in zip(first, other, strict=True))


def test_the_largest_seed_that_a_run_allows_works() -> None:
    seed_everything(2**32 - 1)
    assert torch.initial_seed() == 2**32 - 1


def test_the_hardware_is_named_with_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr("notan.runtime._processor", lambda: "Abacus 2")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert describe_hardware(CPU) == "Abacus 2, 3 threads"
    assert describe_hardware(CUDA) == "GPU 0; Abacus 2, 3 threads"
    assert describe_hardware(torch.device("mps")) == "Apple GPU; Abacus 2, 3 threads"


def test_a_processor_has_some_name_whatever_the_system_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = tmp_path / "cpuinfo"
    facts.write_text("vendor_id : x\nmodel name\t: Abacus 2\nmodel name\t: Abacus 3\n")
    assert _processor(facts) == "Abacus 2"
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "")
    assert _processor(tmp_path / "absent") == "a processor"


def test_a_precision_says_why_it_was_chosen() -> None:
    assert str(choose_precision("auto", CPU)) == "float32 (the safe choice on cpu)"


FREED_AND_TAKEN_AGAIN = """
import resource, sys
import numpy as np
from notan.runtime import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

assert sys.argv[1] == "plain" or keep_freed_memory()
np.ones(100_000_000, np.uint8).sum()
before = faults()
np.ones(100_000_000, np.uint8).sum()
print(faults() - before)
"""


def faults(how: str) -> int:
    """Count the pages that the system hands out for memory that was there before."""
    command = [sys.executable, "-c", FREED_AND_TAKEN_AGAIN, how]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only the GNU C library can be told")
def test_freed_memory_is_taken_again_without_asking_the_system() -> None:
    # a system with huge pages hands out few for the plain process too
    assert faults("kept") < 20 <= faults("plain")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()


def in_groups(folder: Path, own: str, files: Mapping[str, object]) -> int | None:
    """Return the free memory of a machine that has 1,000 kB, in control groups."""
    (folder / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable: 1000 kB\n")
    (folder / "own").write_text(own)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{content}\n")
    return free_memory(folder / "meminfo", own=folder / "own", groups=folder / "groups")


def version_2(name: str, limit: object, usage: int = 300, cached: int = 0) -> dict[str, object]:
    values = {"max": limit, "current": usage, "stat": f"anon 9\ninactive_file {cached}"}
    return {f"groups{name}/memory.{key}": value for key, value in values.items()}


def test_free_memory_is_what_linux_says(tmp_path: Path) -> None:
    assert in_groups(tmp_path, "", {}) == 1000 * 1024


@pytest.mark.parametrize(
    ("own", "files", "free"),
    [
        ("0::/job", version_2("/job", 1000), 700),
        ("0::/job", version_2("/job", 1000, cached=200), 900),
        ("0::/job/step", {**version_2("/job/step", "max"), **version_2("/job", 800)}, 500),
        ("0::/name/of/the/host", version_2("", 1000), 700),
        ("0::/job", version_2("/job", 200), 0),
        ("0::/job", version_2("/job", 2**62), 1000 * 1024),
        ("0::/job", version_2("/job", "max"), 1000 * 1024),
        ("0::/job", version_2("/elsewhere", 400), 1000 * 1024),
        (
            "9:cpu,memory:/job\n3:cpuset:/\n0::/",
            {
                "groups/memory/job/memory.limit_in_bytes": 900,
                "groups/memory/job/memory.usage_in_bytes": 500,
                "groups/memory/job/memory.stat": "total_inactive_file 100",
            },
            500,
        ),
        ("nonsense", version_2("", 1), 1000 * 1024),
    ],
)
def test_free_memory_is_what_the_limit_of_a_container_or_job_leaves(
    tmp_path: Path, own: str, files: Mapping[str, object], free: int
) -> None:
    assert in_groups(tmp_path, own, files) == free


@pytest.mark.parametrize("text", [None, "", "MemTotal: 9 kB", "MemAvailable:", "MemAvailable: x"])
def test_without_that_half_of_all_memory_counts(tmp_path: Path, text: str | None) -> None:
    facts = tmp_path / "meminfo"
    if text is not None:
        facts.write_text(text)
    found = free_memory(facts, own=tmp_path / "absent")
    assert found == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def test_memory_that_nobody_tells_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sysconf")
    assert free_memory(tmp_path / "absent", own=tmp_path / "absent") is None


def test_a_thread_that_waits_for_others_is_busy_and_one_alone_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = {"monotonic": 3.0, "thread_time": 1.0}

    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now * shares["monotonic"]

        def thread_time(self) -> float:
            self.now += 0.01
            return self.now * shares["thread_time"]

    monkeypatch.setattr(runtime, "time", Clock())
    assert how_busy() == pytest.approx(3, rel=0.3)
    shares["monotonic"] = 0.5  # no clock is perfect
    assert how_busy() == 1


def cpu_facts(cores: list[tuple[int, int]]) -> str:
    """What /proc/cpuinfo says of processors on these (socket, core)."""
    return "\n\n".join(
        f"processor\t: {number}\nphysical id\t: {socket}\ncore id\t\t: {core}\nflags\t: fpu"
        for number, (socket, core) in enumerate(cores)
    )


TWO_SOCKETS = [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(
    ("facts", "allowed", "group", "files", "cores"),
    [
        (cpu_facts(TWO_SOCKETS * 2), range(8), "0::/", {}, 4),  # two threads a core
        (cpu_facts(TWO_SOCKETS * 2), (0, 4), "0::/", {}, 1),  # two halves of one
        (cpu_facts(TWO_SOCKETS * 2), (0, 5), "0::/", {}, 2),
        (cpu_facts(TWO_SOCKETS), range(4), "0::/", {"cpu.max": "max 100000"}, 4),
        (cpu_facts(TWO_SOCKETS), range(4), "0::/", {"cpu.max": "200000 100000\n"}, 2),
        (cpu_facts(TWO_SOCKETS), range(4), "0::/", {"cpu.max": "150000 100000"}, 2),
        (cpu_facts(TWO_SOCKETS), range(4), "0::/", {"cpu.max": "10000 100000"}, 1),
        (cpu_facts(TWO_SOCKETS), range(4), "0::/a/b", {"a/cpu.max": "100000 100000"}, 1),
        (cpu_facts(TWO_SOCKETS), range(4), "0::/a/b", {"other/cpu.max": "100000 100000"}, 4),
        (cpu_facts(TWO_SOCKETS), range(4), "0::/", {"cpu.max": "9900000 100000"}, 4),
        ("", range(6), "", {}, 6),  # no Linux
        ("processor : x\n\ncore id", range(3), "rubbish", {"cpu.max": "much of it"}, 3),
        (
            cpu_facts(TWO_SOCKETS),
            range(4),
            "2:cpu:/docker/1",
            {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"},
            3,
        ),
        (
            cpu_facts(TWO_SOCKETS),
            range(4),
            "2:cpu:/docker/1",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            4,
        ),
    ],
)
def test_cores_are_counted_and_a_containers_share_of_them(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    facts: str,
    allowed: Iterable[int],
    group: str,
    files: dict[str, str],
    cores: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*allowed}, raising=False)
    for name, text in {"facts": facts, "group": group}.items():
        (tmp_path / name).write_text(text)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = count_cores(tmp_path / "facts", own=tmp_path / "group", groups=tmp_path / "groups")
    assert found == cores


@pytest.mark.parametrize(
    ("variable", "cores", "present", "set_to"),
    [(None, 2, 8, 2), (None, 8, 2, None), (None, 2, 2, None), ("6", 2, 6, None)],
)
def test_threads_are_no_more_than_cores_unless_somebody_said_how_many(
    monkeypatch: pytest.MonkeyPatch,
    variable: str | None,
    cores: int,
    present: int,
    set_to: int | None,
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    told: list[int] = []
    monkeypatch.setattr(runtime, "count_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: present)
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    limit_threads()
    assert told == ([] if set_to is None else [set_to])


COMPILER_LEFT_OUT = """
import sys
import torch
from notan.config import Train
from notan.runtime import leave_out_compiler, seed_everything
from notan.training.optim import build_optimizer
seed_everything(0)
leave_out_compiler()
model = torch.nn.Linear(2, 1)
optimizer = build_optimizer(model, Train())
optimizer.zero_grad()
model(torch.ones(1, 2)).sum().backward()
optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules, "the compiler was imported"
"""


def test_optimizers_work_without_importing_the_compiler() -> None:
    subprocess.run([sys.executable, "-c", COMPILER_LEFT_OUT], check=True, timeout=120)
