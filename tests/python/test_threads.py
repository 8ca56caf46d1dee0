"""Many threads, the library's own threads, and processes made by fork."""
import os
import subprocess
import sys
import threading

import pytest

import rmsnorm


@pytest.fixture
def threads_restored():
    yield
    rmsnorm.set_cpu_threads(0)


def run_in_threads(count, work):
    """Runs work(index) in each of count threads at once; raises what they raised."""
    errors = []

    def guarded(index):
        try:
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_threads_share_a_plan(device, random):
    arrays = [random(16, 1024) for _ in range(8)]
    given = [device.of(array) for array in arrays]
    weight = device.of(random(1024))
    wanted = [device.numpy(rmsnorm.rms_norm(x, weight)).tobytes() for x in given]

    def work(index):
        for _ in range(100):
            y = rmsnorm.rms_norm(given[index], weight)
            assert device.numpy(y).tobytes() == wanted[index]

    run_in_threads(8, work)


def test_the_librarys_own_threads(random, threads_restored):
    x, weight = random(1024, 1024), random(1024)
    assert rmsnorm.get_cpu_threads() == 0
    wanted = rmsnorm.rms_norm(x, weight).tobytes()
    gradients = rmsnorm.rms_norm_backward(x, x, weight)
    for count in (2, 5, 1, 0, 3):
        rmsnorm.set_cpu_threads(count)
        assert rmsnorm.get_cpu_threads() == count
        before = len(os.listdir("/proc/self/task"))
        assert rmsnorm.rms_norm(x, weight).tobytes() == wanted
        assert len(os.listdir("/proc/self/task")) - before == max(count - 1, 0)
        again = rmsnorm.rms_norm_backward(x, x, weight)
        assert all(a is b is None or a.tobytes() == b.tobytes() for a, b in zip(gradients, again))


@pytest.mark.parametrize("count, error", [
    (-1, rmsnorm.ArgumentError), (1025, rmsnorm.ArgumentError), (2.0, TypeError), ("2", TypeError),
    (None, TypeError)])
def test_bad_thread_counts(count, error):
    with pytest.raises(error, match="^count"):
        rmsnorm.set_cpu_threads(count)
    assert rmsnorm.get_cpu_threads() == 0


def test_calls_go_on_while_the_count_changes(random, threads_restored):
    x, weight = random(1200, 1024), random(1024)
    wanted = rmsnorm.rms_norm(x, weight).tobytes()

    def work(index):
        for i in range(30):
            if index == 0:
                rmsnorm.set_cpu_threads(1 + i % 3)
            else:
                assert rmsnorm.rms_norm(x, weight).tobytes() == wanted

    run_in_threads(4, work)


FORK = """
import os, sys, threading
import numpy as np
import rmsnorm
from rmsnorm import _context

def in_child(work):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            threading.Timer(60, os._exit, (3,)).start()
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def work():
    assert rmsnorm.rms_norm(x, weight).tobytes() == wanted
    rmsnorm.set_cpu_threads(2)
    assert rmsnorm.rms_norm(x[:1100], weight).tobytes() == wanted[:1100 * 4096]

rmsnorm.set_cpu_threads(int(sys.argv[1]))
x, weight = np.random.randn(2048, 1024).astype("f4"), np.ones(1024, "f4")
wanted = rmsnorm.rms_norm(x, weight).tobytes()
print(in_child(work))
with _context._lock:  # as if another thread made a context while this one forks
    print(in_child(work))
print(in_child(lambda: os._exit(7)))
assert rmsnorm.rms_norm(x, weight).tobytes() == wanted
"""


@pytest.mark.parametrize("count", [0, 3])
def test_fork(count):
    """In a process of its own, without the threads of whatever this one has loaded."""
    said = subprocess.run([sys.executable, "-W", "ignore", "-c", FORK, str(count)], check=True,
                          text=True, stdout=subprocess.PIPE).stdout
    assert said.split() == ["0", "0", "7"]
