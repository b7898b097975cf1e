"""Snapshots, archives and restores: random histories against the oracle, real S3, damage, kills, planted bugs."""

import pytest

pytest.register_assert_rewrite("tests.backup.story")
