"""Random histories against the oracle, and readers that look for more than one state."""
