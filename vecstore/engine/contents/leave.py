"""A copied directory becomes a store of a lineage of its own, with the contents that it has.

Its original can then be met without harm: neither believes a word of the other. Offline; what is not done after a crash
is done again by the same call.
"""

from __future__ import annotations

import os
import shutil

from ...config import Config
from ...errors import InvalidArgument
from ...storage.swap import PREPARED, swap, sync_tree
from ..clone import Clone, take_clone
from ..engine import Engine
from ..kept import LEAVING
from .install import held

__all__ = ["leave_lineage"]


def leave_lineage(path: str) -> Clone:
    """Give the copied store in a directory a lineage of its own: it is a primary without slots, peers or an archive.

    Raises
    ------
    InvalidArgument
        The directory is not a copy.
    """
    engine = Engine(path, create=False, read_only=False, device="cpu", config=Config())
    try:
        path = engine.directory.path
        if not engine.is_copied:
            raise InvalidArgument(f"path: {path} is not a copy: it is the store that it says it is")
        draft = os.path.join(path, LEAVING)
        shutil.rmtree(draft, ignore_errors=True)
        made = take_clone(engine, draft)
    finally:
        engine.close()
    directory = held(path)
    try:
        os.rename(draft, os.path.join(path, PREPARED))
        sync_tree(os.path.join(path, PREPARED))
        # The identity last: until the other lineage is in place this is a copy that nobody hears.
        swap(path, directory.adopt)
    finally:
        directory.close()
    return made
