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
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Embed", "hashing", "load"]

Embed = Callable[[list[str]], Any]
DIM = 1024
COMMON_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by can do does for from had has have how i if in is it its no not of on or so than "
        "that the their then there these this to was what when where which who will with you your",
    )
)


def hashing(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Return vectors of shape (n, 1024) of words and their parts of three letters, hashed with a sign, of length 1."""
    vectors = np.zeros((len(texts), DIM), np.float32)
    for vector, text in zip(vectors, texts, strict=True):
        counts: Counter[str] = Counter()
        for word in re.findall(r"\w+", text.lower()):
            if word not in COMMON_WORDS:
                framed = f"<{word}>"
                counts[framed] += 4  # a whole word says more than one of its parts
                counts.update(framed[i : i + 3] for i in range(len(framed) - 2))
        for part, count in counts.items():
            code = zlib.crc32(part.encode())
            # The sign lets collisions cancel out instead of add up.
            vector[code % DIM] += (1.0 if code >> 31 else -1.0) * count**0.5
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
