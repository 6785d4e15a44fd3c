"""Values of metrics, and how they become JSON."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Result: TypeAlias = dict[str, Any]


def to_plain(value: Any) -> Any:
    """Turn NumPy values into what JSON knows; an undefined number becomes ``None``."""
    if isinstance(value, dict):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [to_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
