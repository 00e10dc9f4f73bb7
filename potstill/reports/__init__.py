"""Reports: pages on runs."""
