"""What an install without extras must do: import, hold its data, connect, and say which extra brings the engine."""

import importlib.util
import sys
import tempfile
from importlib.resources import files

import vecstore

assert importlib.util.find_spec("faiss") is None, "this is meant to run where no extra is installed"
assert (files("vecstore") / "py.typed").is_file()
assert (files("vecstore") / "cli" / "sample.parquet").is_file()
try:
    # The client is there: it fails because nothing listens, not because something is missing.
    vecstore.connect("127.0.0.1:9", timeout=1.0)
except vecstore.Unavailable as exc:
    assert "127.0.0.1:9" in str(exc), exc
else:
    raise SystemExit("something listens on port 9")
for name in ("vecstore.engine", "vecstore.server", "vecstore.storage", "vecstore.index"):
    assert name not in sys.modules, f"the client imports {name}"
with tempfile.TemporaryDirectory() as folder:
    try:
        vecstore.open(folder + "/store")
    except vecstore.EngineMissing as exc:
        assert "cpu" in str(exc), exc
    else:
        raise SystemExit("vecstore.open worked without an engine")
