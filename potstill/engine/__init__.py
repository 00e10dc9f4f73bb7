"""The engine: unrolls, their derivatives by replay, and their compilation."""
