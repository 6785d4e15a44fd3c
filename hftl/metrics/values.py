"""Values of metrics, and how they become JSON."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Result: TypeAlias = dict[str, Any]

# A probability that float32 rounded to 0 has a logarithm all the same.
LEAST = float(np.finfo(np.float32).tiny)


def ratio(part: Any, whole: Any) -> Array:
    """A share that is 0 where nothing could be counted, as scikit-learn's ``zero_division=0`` has it."""
    return np.where(whole > 0, part / np.maximum(whole, 1e-300), 0.0)


def to_plain(value: Any) -> Any:
    """Turn NumPy values into what JSON knows; an undefined number becomes ``None``."""
    if isinstance(value, dict):
        return {str(key): to_plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [to_plain(inner) for inner in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
