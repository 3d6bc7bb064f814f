"""The memory that is available, with the limits of containers."""

import sys

import pytest

from runtime.host_memory import available_memory

GB = 1 << 30
UNLIMITED = 9223372036854771712
"""What Linux says in version 1 where there is no limit."""


@pytest.fixture
def system(tmp_path):
    """system(files) -> a root with these files and 20 GB available."""

    def make(files, cgroup):
        for name, text in {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {20 << 20} kB\n", **files}.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
        (tmp_path / "proc/self").mkdir(exist_ok=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        return tmp_path

    return make


def v2(group, limit, current, inactive=0, high="max"):
    stat = f"anon 5\ninactive_file {inactive}\nactive_file 7"
    values = {"max": limit, "high": high, "current": current, "stat": stat}
    return {f"sys/fs/cgroup{group}/memory.{name}": value for name, value in values.items()}


def v1(group, limit, usage, inactive=0):
    stat = f"inactive_file 1\ntotal_inactive_file {inactive}"
    values = {"limit_in_bytes": limit, "usage_in_bytes": usage, "stat": stat}
    return {f"sys/fs/cgroup/memory{group}/memory.{name}": value for name, value in values.items()}


@pytest.mark.parametrize(
    ("files", "cgroup", "wanted"),
    [
        ({}, "", 20 * GB),
        (v2("", 8 * GB, 3 * GB), "0::/\n", 5 * GB),
        (v2("", 8 * GB, 3 * GB, GB), "0::/\n", 6 * GB),
        (v2("", "max", 3 * GB), "0::/\n", 20 * GB),
        (v2("", "max", 3 * GB, high=4 * GB), "0::/\n", GB),
        (v2("", 2 * GB, 3 * GB), "0::/\n", 0),
        (v2("/a/b", 8 * GB, 3 * GB) | v2("/a", 5 * GB, 3 * GB), "0::/a/b\n", 2 * GB),
        (v2("/a/b", 4 * GB, 3 * GB) | v2("/a", 9 * GB, 3 * GB), "0::/a/b\n", GB),
        (v2("", 8 * GB, 3 * GB), "0::/kubepods/outside/of/it\n", 5 * GB),
        (v1("", 8 * GB, 3 * GB, GB), "9:pids:/x\n4:memory:/\n", 6 * GB),
        (v1("/x", 8 * GB, 3 * GB) | v1("", UNLIMITED, 9 * GB), "4:cpu,memory:/x\n0::/\n", 5 * GB),
        (v1("", 8 * GB, 3 * GB), "4:memory:/docker/0123\n0::/\n", 5 * GB),
        (v1("", UNLIMITED, 3 * GB), "4:memory:/\n", 20 * GB),
        ({"sys/fs/cgroup/memory.max": "8"}, "0::/\n", 20 * GB),
        ({"sys/fs/cgroup/memory.max": "junk", "sys/fs/cgroup/memory.current": "junk"}, "0::/\n\njunk\n", 20 * GB),
    ],
)
def test_limits(system, files, cgroup, wanted):
    assert available_memory(system(files, cgroup)) == wanted


def test_systems_that_do_not_tell(tmp_path):
    assert available_memory(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell, or in another way")
def test_this_machine():
    available = available_memory()
    assert available is not None and 1 << 28 < available < 1 << 50
