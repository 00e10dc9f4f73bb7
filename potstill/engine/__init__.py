"""The engine: unrolls, their derivatives by replay, and what compiles them."""
