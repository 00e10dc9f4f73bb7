"""Records: what is kept as plain data, each with a type."""
