"""Studies: the paper's experiments as commands."""
