"""One query, checked and prepared for the kernels in as few steps as it takes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import InvalidArgument
from ..index.cpu import prepare, prepared
from ..inputs import finite, real_array
from ..values import Metric

__all__ = ["prepared_query"]

_FLOAT32 = np.dtype(np.float32)


def prepared_query(vector: npt.ArrayLike, dim: int, metric: Metric) -> npt.NDArray[np.float32]:
    """Return one query as float32 (1, dim), as the kernels expect it.

    One look at the prepared numbers tells whether all is well: what is not finite, too large for a float32, or has no
    direction, gives no query. Only then is it worth asking what was wrong.
    """
    array = vector if type(vector) is np.ndarray and vector.dtype == _FLOAT32 else real_array(vector, "vector")
    if array.shape != (dim,):
        if array.ndim == 1:
            raise InvalidArgument(f"vector: dimension {array.shape[0]} given; the collection's is {dim}")
        raise InvalidArgument(f"vector: an array of shape {array.shape} given; allowed is ({dim},)")
    floats = array
    if array.dtype != _FLOAT32:
        with np.errstate(over="ignore"):
            floats = array.astype(np.float32)
    query = prepared(metric, floats)
    return prepare(metric, finite(array[None, :], metric, "vector")) if query is None else query
