"""Code is compiled once, and cached where only its user can write; a bad cache costs only time."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest

from engine.compiled import compiler
from engine.compiled.compiler import helper, kernel

FIRST_USE = """
import numpy as np
from tests.engine.compiled.test_compiler import run
print(run())
"""


@helper
def one_more(value: Any) -> Any:
    return value + np.float32(1)


def add_one(values: Any) -> None:
    for at in range(len(values)):
        values[at] = one_more(values[at])


def run() -> list[float]:
    """Return the result of a function that is compiled, or loaded from the cache, anew."""
    values = np.zeros(3, np.float32)
    kernel("void(f4[::1])")(add_one)(values)
    return [float(value) for value in values]


DONE = [1.0, 1.0, 1.0]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of compiled code in an empty cache."""
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / compiler.FOLDER


def files(cache: Path) -> list[Path]:
    return [path for path in sorted(cache.rglob("*")) if path.is_file()]


def test_a_function_is_compiled_once_and_then_loaded(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run() == DONE
    assert [path.suffix for path in files(cache)] == [".nbc", ".nbi"]
    assert numba.config.CACHE_DIR == ""

    def refuse(*args: Any) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr("numba.core.compiler.compile_extra", refuse)
    assert run() == DONE


def spoil_index(cache: Path) -> None:
    files(cache)[1].write_bytes(b"")


def spoil_code(cache: Path) -> None:
    path = files(cache)[0]
    path.write_bytes(path.read_bytes()[:1000])


def replace_by_file(cache: Path) -> None:
    (folder,) = cache.iterdir()
    folder.rename(cache.parent / "moved")
    folder.write_text("no folder")


def let_others_write(cache: Path) -> None:
    (folder,) = cache.iterdir()
    folder.chmod(0o777)


def give_to_others(cache: Path) -> None:
    (folder,) = cache.iterdir()
    os.chown(folder, 1, 1)


FAULTS = [spoil_index, spoil_code, replace_by_file, let_others_write, give_to_others]


@pytest.mark.parametrize("spoil", FAULTS)
def test_a_cache_that_cannot_be_used_costs_a_warning(
    cache: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    if spoil is give_to_others and os.geteuid() != 0:
        pytest.skip("only root gives files to others")
    run()
    spoil(cache)
    before = files(cache)
    compiler.usable_folder.cache_clear()
    assert run() == DONE
    (record,) = caplog.records
    assert str(cache) in record.getMessage()
    assert files(cache) == before


def test_a_full_disk_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", refuse)
    assert run() == DONE
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage()


def test_threads_that_use_a_kernel_first_compile_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(compiler, "usable_folder", lambda folder: compiled.append(folder))
    shared, results = kernel("void(f4[::1])")(add_one), np.zeros((8, 3), np.float32)
    start = threading.Barrier(8)

    def use(row: int) -> None:
        start.wait()
        shared(results[row])

    threads = [threading.Thread(target=use, args=(row,)) for row in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (results == 1).all()
    assert len(compiled) == 1


@pytest.mark.slow
def test_processes_may_share_an_empty_cache(cache: Path) -> None:
    command = [sys.executable, "-c", FIRST_USE]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in running] == [f"{DONE}\n"] * 2
    assert [path.suffix for path in files(cache)] == [".nbc", ".nbi"]


def test_without_numba_the_log_says_so_once(
    no_numba: None, caplog: pytest.LogCaptureFixture
) -> None:
    assert not compiler.is_available()
    assert not compiler.is_available()
    (record,) = caplog.records
    assert "pip install numba" in record.getMessage()


def test_the_switch_of_numba_turns_compiled_code_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    compiler.has_numba.cache_clear()
    assert not compiler.is_available()
    compiler.has_numba.cache_clear()


def test_the_first_function_takes_most_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_made", [])
    before = compiler.bytes_to_compile()
    run()
    assert 0 < compiler.bytes_to_compile() < before
    with compiler.switched_off():
        assert compiler.bytes_to_compile() == 0
