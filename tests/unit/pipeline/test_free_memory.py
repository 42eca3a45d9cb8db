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
    (cgroup / "memory.stat").write_text("anon 1572864\ninactive_file 0\n")
    assert free_memory_bytes(meminfo, cgroup) == 1 << 20


def test_a_container_of_the_older_kind_has_its_limit_too(tmp_path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{3 << 20}\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text(f"{2 << 20}\n")
    (tmp_path / "memory" / "memory.stat").write_text("cache 4096\ninactive_file 4096\n")
    assert free_memory_bytes(tmp_path / "none", tmp_path) == (1 << 20) + 4096


def test_files_that_a_container_has_read_leave_its_memory_free(tmp_path):
    (tmp_path / "memory.max").write_text(f"{1 << 30}\n")
    (tmp_path / "memory.current").write_text(f"{1 << 30}\n")
    (tmp_path / "memory.stat").write_text(f"anon {1 << 28}\nfile {3 << 28}\ninactive_file {1 << 29}\n")
    assert free_memory_bytes(tmp_path / "none", tmp_path) == 1 << 29
