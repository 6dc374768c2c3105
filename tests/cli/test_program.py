"""The program itself: help, version, both ways to start it, what it imports."""

import subprocess
import sys

import vitprobe


def call(*args):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=120)


def test_it_runs_as_a_module_and_tells_its_version():
    done = call("-m", "vitprobe", "--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"vitprobe {vitprobe.__version__}")


def test_help_names_the_commands_in_groups():
    done = call("-m", "vitprobe", "--help")
    assert done.returncode == 0
    assert "Measure" in done.stdout and "norms" in done.stdout


def test_help_imports_nothing_heavy():
    heavy = "('torch', 'numpy', 'matplotlib', 'timm', 'PIL', 'pyarrow')"
    done = call("-c", f"import sys, vitprobe.cli; print([name for name in {heavy} if name in sys.modules])")
    assert done.stdout.strip() == "[]"


def test_every_option_of_norms_is_explained():
    done = call("-m", "vitprobe", "norms", "--help")
    for option in (
        "--model",
        "--weights",
        "--rule",
        "--all-rules",
        "--block",
        "--tokens",
        "--json",
        "--limit",
        "--seed",
    ):
        assert option in done.stdout
