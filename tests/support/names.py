"""Names of a test's own, that stores and repositories are reached by, and that can be cut: see `names.c`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

__all__ = ["Names"]

SOURCE = Path(__file__).with_name("names.c")
HANG_S = 20


class Names:
    """A resolver for the processes that are started in its environment.

    Parameters
    ----------
    folder
        For the library, which is compiled, and for the mark that cuts.
    """

    def __init__(self, folder: Path) -> None:
        gcc = shutil.which("gcc")
        if gcc is None:
            pytest.skip("gcc is needed to build the resolver that can be cut")
        self._library, self._cut = folder / "names.so", folder / "cut"
        flags = ["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([gcc, *flags, "-o", str(self._library), str(SOURCE)], check=True)
        self.environment = {
            "LD_PRELOAD": str(self._library),
            "VECSTORE_NAMES_CUT": str(self._cut),
            "VECSTORE_NAMES_HANG_S": str(HANG_S),
            # gRPC's own resolver asks name servers without the C library.
            "GRPC_DNS_RESOLVER": "native",
        }

    @staticmethod
    def of(name: str, port: int) -> str:
        """Return an address by name."""
        return f"{name}.stores.test:{port}"

    def cut(self) -> None:
        """Let every question for a name hang from now on."""
        self._cut.touch()
