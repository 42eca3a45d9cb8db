import os

import pytest

from streaming.pipeline.cores import core_share, drawing_threads, usable_cores

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", ALL), ("100000 100000", 1), ("20000 100000", 1), ("99900000 100000", ALL), ("junk", ALL)],
)
def test_a_containers_quota_counts(tmp_path, text, cores):
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert usable_cores(cgroup=tmp_path, membership=tmp_path / "none") == cores


@pytest.mark.parametrize(("quota", "cores"), [("-1", ALL), ("100000", 1)])
def test_a_containers_quota_of_cgroups_version_1_counts(tmp_path, quota, cores):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert usable_cores(cgroup=tmp_path, membership=tmp_path / "none") == cores


def test_without_a_container_all_cores_count(tmp_path):
    assert usable_cores(cgroup=tmp_path, membership=tmp_path / "none") == ALL


@pytest.mark.parametrize(
    ("membership", "folder"),
    [
        ("0::/system.slice/geneface.service\n", "system.slice/geneface.service"),  # its own group
        ("0::/system.slice/geneface.service\n", "system.slice"),  # one around it
        ("0::/docker/0123\n", ""),  # the host's path, of which a container sees the root alone
        ("0::/../../elsewhere\n", ""),  # outside of the namespace
        ("1:name=systemd:/x\n4:memory:/y\n0::/a\n", "a"),  # both versions are mounted
    ],
)
def test_a_quota_on_any_group_around_the_process_counts(tmp_path, membership, folder):
    (tmp_path / "membership").write_text(membership)
    root = tmp_path / "cgroup"
    (root / folder).mkdir(parents=True)
    (root / folder / "cpu.max").write_text("50000 100000\n")
    assert core_share(cgroup=root, membership=tmp_path / "membership") == 0.5
    assert usable_cores(cgroup=root, membership=tmp_path / "membership") == 1


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
@pytest.mark.parametrize("folder", ["", "docker", "docker/0123"])
def test_a_quota_of_version_1_counts_by_whatever_name_it_is_mounted(tmp_path, mount, folder):
    (tmp_path / "membership").write_text("5:memory:/other\n3:cpu,cpuacct:/docker/0123\n")
    group = tmp_path / mount / folder
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("25000\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert core_share(cgroup=tmp_path, membership=tmp_path / "membership") == 0.25


def test_the_least_of_all_quotas_counts(tmp_path):
    (tmp_path / "membership").write_text("0::/a/b\n")
    for folder, quota in (("a/b", 90000), ("a", 40000), ("", 80000)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "cpu.max").write_text(f"{quota} 100000\n")
    assert core_share(cgroup=tmp_path, membership=tmp_path / "membership") == 0.4


def test_a_limit_counts_where_it_is_the_least(tmp_path):
    def share(limit):
        return core_share(limit, cgroup=tmp_path, membership=tmp_path / "none")

    assert share(1) == 1
    assert share(0) == share(10_000) == ALL
    (tmp_path / "cpu.max").write_text("50000 100000")
    assert share(1) == 0.5


def test_one_thread_a_core_draws_unless_asked_for_others():
    assert drawing_threads(0, cores=2) == 2
    assert drawing_threads(0, cores=64) == 8
    assert drawing_threads(3, cores=2) == 3
