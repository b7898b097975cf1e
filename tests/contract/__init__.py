"""What every implementation of `Database` and `Collection` keeps: suites to inherit, each of one topic.

A module that supplies an implementation gives the fixtures of `DatabaseContract` and inherits the topics. Nothing in
the topics knows how a store is opened.
"""

import pytest

for _topic in (
    "base",
    "lifecycle",
    "writing",
    "tables",
    "reading",
    "searching",
    "filtering",
    "schema",
    "history",
    "indexing",
    "bad_input",
):
    pytest.register_assert_rewrite(f"tests.contract.{_topic}")
