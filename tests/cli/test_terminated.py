"""A run that is told to end, as a batch scheduler does, leaves nothing behind."""

import signal
import subprocess
import sys
import time


def test_terminated_it_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    command = ["norms", "--limit", "100000", "--format", "none", "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "vitprobe", *command], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until = time.monotonic() + 120
    while not list(tmp_path.iterdir()):  # the result is being written aside
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, err = process.communicate(timeout=60)
    assert (process.returncode, said, err) == (128 + signal.SIGTERM, b"", b"")
    assert list(tmp_path.iterdir()) == []
