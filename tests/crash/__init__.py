"""What survives: real processes killed, power cut, bytes flipped, disks full, bugs planted."""

import pytest

pytest.register_assert_rewrite("tests.crash.checks", "tests.crash.history")
