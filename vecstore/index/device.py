"""Where indexes are searched. This version knows the CPU alone.

Not here: any code that runs on a device. No I/O but asking FAISS what it was built with.
"""

from __future__ import annotations

from typing import Literal

import faiss

from ..errors import EngineMissing, InvalidArgument

__all__ = ["Device", "resolve"]

Device = Literal["auto", "cpu", "gpu"]


def resolve(device: str) -> Literal["cpu"]:
    """Return the device that searches run on.

    Parameters
    ----------
    device
        "auto" takes what there is, "cpu" the CPU, "gpu" insists.

    Raises
    ------
    InvalidArgument
        Another name; or "gpu", which this version cannot search on though FAISS could.
    EngineMissing
        "gpu", and the FAISS that is installed has no GPU code.
    """
    if device in ("auto", "cpu"):
        return "cpu"
    if device != "gpu":
        raise InvalidArgument(f"device: {device!r} is not one of 'auto', 'cpu', 'gpu'")
    if "GPU" not in str(faiss.get_compile_options()).split():
        raise EngineMissing(
            "device: 'gpu' was asked for, and the FAISS that is installed has no GPU code",
            hint="use device='auto', which searches on the CPU",
        )
    raise InvalidArgument(
        "device: 'gpu' was asked for, and this version searches on the CPU alone", hint="use device='auto'"
    )
