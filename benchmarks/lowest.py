"""Print the oldest versions that pyproject.toml allows users, for `make lowest`: NAME==VERSION.

timm is left out: it needs torchvision, whose package is for torch with CUDA.
"""

import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

for requirement in (*PROJECT["dependencies"], *EXTRAS["hf"], *EXTRAS["tensorboard"]):
    print(requirement.replace(">=", "=="))
