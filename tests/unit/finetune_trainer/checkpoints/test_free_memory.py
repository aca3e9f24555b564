"""The memory that a pod may still use, by the node and by its cgroups."""

from pathlib import Path

import pytest

from finetune_trainer.checkpoints.free_memory import VERSION_1, VERSION_2, free_memory, given_back

GB = 2**30
UNLIMITED = 9223372036854771712
NODE = 8 * GB
POD, CONTAINER = "kubepods/pod1", "kubepods/pod1/container1"


def group(root: Path, path: str, version: int, limit: int | str, used: int, cached: int = 0, above: int = 0) -> None:
    """Writes the files of a cgroup. `above`: the limit of the ancestors that version 1 tells."""
    files, folder = (VERSION_1, root / "memory" / path) if version == 1 else (VERSION_2, root / path)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files.limit).write_text(f"{limit}\n")
    (folder / files.used).write_text(f"{used}\n")
    inactive, active = files.cached
    told = f"hierarchical_memory_limit {above}\n" if above else ""
    (folder / "memory.stat").write_text(f"anon 1\n{inactive} {cached}\n{active} 0\n{told}")


def free(root: Path, *lines: str) -> int:
    """The free memory on a node of 8 GB. `lines`: the content of /proc/self/cgroup."""
    (root / "meminfo").write_text(f"MemTotal:       999 kB\nMemAvailable:   {NODE // 1024} kB\n")
    (root / "own").write_text("".join(f"{line}\n" for line in lines))
    return free_memory(root, root / "own", root / "meminfo")


def own(version: int, path: str) -> list[str]:
    """The lines of /proc/self/cgroup of a process in the group `path`."""
    return ["3:cpu,cpuacct:/other", f"4:memory:/{path}", "0::/"] if version == 1 else [f"0::/{path}"]


def test_memory_that_the_process_gave_back_is_needed_again(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    5000 kB\nVmRSS:\t    2000 kB\n")
    assert given_back(tmp_path / "status") == 3000 * 1024


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("path", ["", CONTAINER, "../../elsewhere"])
def test_a_container_is_bounded_by_its_own_group_whatever_the_host_calls_it(
    tmp_path: Path, version: int, path: str
) -> None:
    group(tmp_path, "", version, 6 * GB, used=5 * GB, cached=3 * GB)
    assert free(tmp_path, *own(version, path)) == 4 * GB, "the kernel gives cached files back"


@pytest.mark.parametrize("version", [1, 2])
def test_every_visible_ancestor_counts(tmp_path: Path, version: int) -> None:
    unlimited = UNLIMITED if version == 1 else "max"
    group(tmp_path, "kubepods", version, unlimited, used=7 * GB)
    group(tmp_path, CONTAINER, version, 6 * GB, used=1 * GB)
    assert free(tmp_path, *own(version, CONTAINER)) == 5 * GB
    group(tmp_path, POD, version, 4 * GB, used=1 * GB)
    assert free(tmp_path, *own(version, CONTAINER)) == 3 * GB
    group(tmp_path, POD, version, 4 * GB, used=5 * GB)
    assert free(tmp_path, *own(version, CONTAINER)) == 0


@pytest.mark.parametrize("version", [1, 2])
def test_without_a_limit_the_node_bounds(tmp_path: Path, version: int) -> None:
    assert free(tmp_path, *own(version, CONTAINER)) == NODE
    group(tmp_path, CONTAINER, version, UNLIMITED if version == 1 else "max", used=1)
    assert free(tmp_path, *own(version, CONTAINER)) == NODE
    group(tmp_path, CONTAINER, version, 100 * GB, used=1)
    assert free(tmp_path, *own(version, CONTAINER)) == NODE


def test_version_1_tells_the_limit_of_an_ancestor_that_is_not_visible(tmp_path: Path) -> None:
    group(tmp_path, "", 1, UNLIMITED, used=1 * GB, above=3 * GB)
    assert free(tmp_path, *own(1, CONTAINER)) == 2 * GB


def test_the_files_of_this_machine_are_read() -> None:
    assert 0 < free_memory() < 2**60
