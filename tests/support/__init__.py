"""What several suites share: the oracle, strategies and data. Nothing here is part of the package."""

import pytest

pytest.register_assert_rewrite("tests.support.oracle")
