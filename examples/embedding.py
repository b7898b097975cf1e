"""How the examples make vectors: by any callable that you name, or by a hashing of words that needs no model.

An embedding here is a callable that takes a list of n texts and returns n vectors of one length. `load` finds yours by
``module:function``; a function of yours may call a model or a service.

`hashing` is the default because it runs anywhere and gives the same vectors everywhere. It knows spelling and no
meaning: "ship" is near "ships", and not near "vessel". Take a model for anything that matters.
"""

from __future__ import annotations

import importlib
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Embed", "hashing", "load"]

Embed = Callable[[list[str]], Any]
DIM = 512


def hashing(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return vectors of shape (n, 512) of words and their parts of three letters, hashed with a sign, of length 1."""
    vectors = np.zeros((len(texts), DIM), np.float32)
    for vector, text in zip(vectors, texts, strict=True):
        for word in re.findall(r"\w+", text.lower()):
            framed = f"<{word}>"
            parts = [framed, *(framed[i : i + 3] for i in range(len(framed) - 2))]
            for part in parts:
                code = zlib.crc32(part.encode())
                # A whole word says more than one of its parts. The sign lets collisions cancel out instead of add up.
                vector[code % DIM] += (1.0 if code >> 31 else -1.0) * (2.0 if part == framed else 1.0)
        length = float(np.linalg.norm(vector))
        if length == 0.0:
            vector[0] = length = 1.0  # a text without words is like no other; a vector of zeros has no direction
        vector /= length
    return vectors


def load(name: str) -> Embed:
    """Return the callable that ``module:function`` names; modules of the current folder are found too.

    Raises
    ------
    ValueError
        The name is not of that form, or there is no such callable.
    """
    module_name, colon, function = name.partition(":")
    if not (module_name and colon and function):
        raise ValueError(f"{name!r}: module:function expected")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as exc:
        raise ValueError(f"{name!r}: {exc}") from exc
    if not callable(found):
        raise ValueError(f"{name!r} is not callable")
    return found  # type: ignore[no-any-return]
