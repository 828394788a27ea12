"""CPUs and memory that are left to a process, by files that stand in for those of the system."""

import resource
from dataclasses import replace

import pytest
import torch

from autodistil_search import InputError, search
from autodistil_search.base.device import Device
from autodistil_search.base.resources import CpuSeconds, FreeMemory, cgroup_limits, cpu_seconds, free_memory
from autodistil_search.runs.search_inputs import resolve_search
from autodistil_search.spaces.cost import params
from autodistil_search.spaces.search_space import load_space
from autodistil_search.teachers.loading import load_teacher

pytestmark = pytest.mark.usefixtures("undrawn")


def written(root, texts):
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("group", "files", "limits"),
    [
        ("0::/", {"cpu.max": "150000 100000", "memory.max": "max"}, (1.5, None)),
        ("0::/a/b", {"cpu.max": "max 100000", "a/cpu.max": "50000 100000", "a/b/memory.max": "4096"}, (0.5, 4096)),
        ("4:memory:/x\n1:cpu:/", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, (2.0, None)),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, (None, None)),
        ("4:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, (None, None)),
        ("4:memory:/x", {"memory/memory.limit_in_bytes": "8192"}, (None, 8192)),
        (None, {}, (None, None)),
    ],
)
def test_the_limits_of_control_groups_of_both_versions(group, files, limits, tmp_path):
    texts = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    if group is not None:
        texts["proc/self/cgroup"] = group
    assert cgroup_limits(written(tmp_path, texts)) == limits


def test_cpu_seconds_are_those_of_the_cpus_on_which_a_process_may_run(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2}, raising=False)
    monkeypatch.setattr("os.sysconf", lambda _: 100)
    #               user nice system idle iowait irq softirq steal guest
    other = "9 9 9 9 9 9 9 9 9"
    lines = (f"cpu  {other}", "cpu0 100 0 50 700 50 0 0 100 7", f"cpu1 {other}", "cpu2 200 0 0 800 0 0 0 0 0", "intr 1")
    assert cpu_seconds(written(tmp_path, {"proc/stat": "\n".join(lines)})) == CpuSeconds(total=20, busy=4.5)


@pytest.mark.parametrize("texts", [{}, {"proc/stat": ""}, {"proc/stat": "cpu0 1 2 3 4\n"}, {"proc/stat": "cpu0 a\n"}])
def test_where_the_system_does_not_state_cpu_seconds_there_are_none(texts, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    assert cpu_seconds(written(tmp_path, texts)) is None


MACHINE, GROUP = "this machine", "the control group of this process"
V2, V1 = "sys/fs/cgroup/a", "sys/fs/cgroup/memory/x"


@pytest.mark.parametrize(
    ("texts", "free"),
    [
        ({}, FreeMemory(4096 * 1024, MACHINE)),
        ({f"{V2}/b/memory.max": "max", f"{V2}/b/memory.current": "4096"}, FreeMemory(4096 * 1024, MACHINE)),
        ({f"{V2}/b/memory.max": "9000", f"{V2}/b/memory.current": "8000"}, FreeMemory(1000, GROUP)),
        ({f"{V2}/memory.max": "9000", f"{V2}/memory.current": "9500"}, FreeMemory(0, GROUP)),  # one that holds it
        (
            {
                f"{V2}/memory.max": "9000",
                f"{V2}/memory.current": "8000",
                f"{V2}/memory.stat": "anon 4500\nfile 3500\nactive_file 1000\ninactive_file 2000\n",
            },
            FreeMemory(4000, GROUP),  # cached files give way
        ),
        (
            {
                f"{V1}/memory.limit_in_bytes": "9000",
                f"{V1}/memory.usage_in_bytes": "8000",
                f"{V1}/memory.stat": "inactive_file 7\ntotal_inactive_file 500\ntotal_active_file 0\n",
            },
            FreeMemory(1500, GROUP),
        ),
        ({f"{V1}/memory.limit_in_bytes": "9223372036854771712"}, FreeMemory(4096 * 1024, MACHINE)),
    ],
)
def test_the_least_that_machine_and_control_groups_leave_is_free(texts, free, tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    system = {
        "proc/meminfo": "MemTotal:  9999 kB\nMemFree:  1 kB\nMemAvailable:  4096 kB\n",
        "proc/self/cgroup": "4:memory:/x\n0::/a/b\n",
    }
    assert free_memory(written(tmp_path, system | texts)) == free


def test_a_limit_of_address_space_counts_less_what_is_mapped(tmp_path, monkeypatch):
    page = resource.getpagesize()
    written(tmp_path, {"proc/meminfo": f"MemAvailable: {page} kB\n", "proc/self/statm": "30 20 10 1 0 5 0\n"})
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100 * page, resource.RLIM_INFINITY))
    assert free_memory(tmp_path) == FreeMemory(70 * page, "the address space of this process (ulimit -v)")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20 * page, 20 * page))
    assert free_memory(tmp_path).size == 0


def test_this_system_states_what_is_free():
    free = free_memory()
    assert free is not None
    assert free.size > 0


def test_a_gpu_has_the_memory_that_its_driver_and_torchs_cache_have_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 700)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    assert Device("cuda:1", "bf16").free_memory() == FreeMemory(5400, "cuda:1")


def test_a_superlm_for_which_too_little_is_free_is_refused_before_anything_is_trained(toy_config, monkeypatch):
    monkeypatch.setattr(Device, "free_memory", lambda self: FreeMemory(100_000, f"{self.name} of the test"))
    with pytest.raises(InputError, match=r"^the SuperLM of space 'debug' .* cpu of the test has 0\.0 GB free$"):
        search(toy_config)
    assert not toy_config.folder.exists()


def test_a_search_of_a_trained_superlm_needs_memory_to_score_it_only(toy_config, monkeypatch):
    """A SuperLM in training is four numbers for each weight; a trained one and a student of its size are two."""
    asked = []

    def free(self):
        asked.append(self.name)
        return FreeMemory(int(2.5 * weights), "the test")

    debug, teacher = load_space("debug"), load_teacher(toy_config.teacher)
    weights = 4 * params(debug.largest, teacher.vocabulary)
    monkeypatch.setattr(Device, "free_memory", free)
    with pytest.raises(InputError, match="for weights and optimizer; the test has"):
        resolve_search(toy_config)
    for config, trains in ((replace(toy_config, superlm="trained"), True), (toy_config, False)):  # or of a worker
        assert resolve_search(config, trains=trains).text is not None
    weights /= 2
    with pytest.raises(InputError, match="for its weights and a student's; the test has"):
        resolve_search(replace(toy_config, superlm="trained"))
    assert len(asked) == 4
