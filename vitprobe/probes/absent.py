"""What stands for a measurement that could not be made."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Absent:
    """Say why there is no result: ``summary`` holds one line under ``absent``."""

    summary: dict[str, Any]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return none."""
        return {}
