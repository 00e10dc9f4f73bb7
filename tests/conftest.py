"""Settings of every test: one thread a process, since the runner starts a process a core."""

import torch

torch.set_num_threads(1)
