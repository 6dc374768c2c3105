"""Run the command line: ``python -m vitprobe``."""

from vitprobe.cli import main

if __name__ == "__main__":
    main()
