"""vecstore in other people's frameworks: one module each, behind an extra of its name."""
