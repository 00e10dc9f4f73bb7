"""A package of someone else's, which potstill knows nothing of."""
