"""What an install without extras must do: import, hold its data, and say which extra brings the engine."""

import importlib.util
import tempfile
from importlib.resources import files

import vecstore

assert importlib.util.find_spec("faiss") is None, "this is meant to run where no extra is installed"
assert (files("vecstore") / "py.typed").is_file()
assert (files("vecstore") / "cli" / "sample.parquet").is_file()
with tempfile.TemporaryDirectory() as folder:
    try:
        vecstore.open(folder + "/store")
    except vecstore.EngineMissing as exc:
        assert "cpu" in str(exc), exc
    else:
        raise SystemExit("vecstore.open worked without an engine")
