from streaming.pipeline.free_memory import free_memory_bytes


def test_free_memory_is_the_lesser_of_machine_and_container(tmp_path):
    meminfo, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    assert free_memory_bytes(meminfo, cgroup) is None
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    2048 kB\n")
    assert free_memory_bytes(meminfo, cgroup) == 2 << 20
    cgroup.mkdir()
    (cgroup / "memory.max").write_text("max\n")
    assert free_memory_bytes(meminfo, cgroup) == 2 << 20
    (cgroup / "memory.max").write_text(f"{3 << 20}\n")
    (cgroup / "memory.current").write_text(f"{2 << 20}\n")
    assert free_memory_bytes(meminfo, cgroup) == 1 << 20
