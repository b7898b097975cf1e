"""The tests of vecstore: contract, property, crash, compatibility, unit and device suites, and what supports them."""
