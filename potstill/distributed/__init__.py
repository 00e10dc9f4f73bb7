"""Several processes that share a run, as torchrun starts them."""
