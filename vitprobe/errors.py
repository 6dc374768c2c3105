"""What goes wrong for a user, said in one line: what was got, what is allowed, what to do."""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the command line returns to the shell."""

    DONE = 0
    PARTIAL = 1
    """Some inputs could not be read; each is named on stderr and in the result."""
    NOTHING = 2
    """Nothing was done: a bad argument, no weights, no readable input."""


class VitprobeError(Exception):
    """A user's problem, not a bug: its message is one line that says what was got, what is allowed and what to do."""

    exit_code: int = ExitCode.NOTHING
    """What the command line returns for it."""


class ArgumentError(VitprobeError, ValueError):
    """An argument has a value that is not allowed."""


class InputError(VitprobeError):
    """An input cannot be read, or no input is left to read."""


class WeightsError(VitprobeError):
    """Weights cannot be found, fetched, read or matched to the architecture."""


class OutputError(VitprobeError):
    """A result cannot be written: the disk is full, or may not be written to."""


class RecordingError(VitprobeError, RuntimeError):
    """A recorder was asked for what the model cannot show, or a site did not fire."""


class Stopped(VitprobeError):
    """The run was asked to stop, and what is kept lets it go on."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number
        """The signal that asked for it."""
        self.exit_code = 128 + number  # as shells have it
