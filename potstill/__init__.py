"""potstill: dataset distillation. A labelled data set of thousands becomes a handful of synthetic
examples.

>>> distilled = potstill.distill(images, labels, ipc=10)
>>> network = potstill.train(distilled)
>>> network(distilled.preprocess(real_images)).argmax(1)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill.api.hub import push
    from potstill.api.measurements import audit, evaluate
    from potstill.api.runs import configuration, diagnose, distill, extend, finish, resume
    from potstill.api.zoo import verify, zoo
    from potstill.distilled.artefact import load, save
    from potstill.distilled.exports import export
    from potstill.distilled.merging import merge
    from potstill.distilled.sets import DistilledSet
    from potstill.errors import InputError
    from potstill.evaluation.scoring import train
    from potstill.imports import trust
    from potstill.progress import Listener

__version__ = "0.2.0"
__all__ = [
    "DistilledSet",
    "InputError",
    "Listener",
    "audit",
    "configuration",
    "diagnose",
    "distill",
    "evaluate",
    "export",
    "extend",
    "finish",
    "load",
    "merge",
    "push",
    "resume",
    "save",
    "train",
    "trust",
    "verify",
    "zoo",
]

# Imported when first used (PEP 562), so that `potstill --help` does not wait for torch.
_HOMES = {
    "audit": "api.measurements",
    "configuration": "api.runs",
    "DistilledSet": "distilled.sets",
    "InputError": "errors",
    "Listener": "progress",
    "diagnose": "api.runs",
    "distill": "api.runs",
    "evaluate": "api.measurements",
    "export": "distilled.exports",
    "extend": "api.runs",
    "finish": "api.runs",
    "load": "distilled.artefact",
    "merge": "distilled.merging",
    "push": "api.hub",
    "resume": "api.runs",
    "save": "distilled.artefact",
    "train": "evaluation.scoring",
    "trust": "imports",
    "verify": "api.zoo",
    "zoo": "api.zoo",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'potstill' has no attribute {name!r}")
    return getattr(importlib.import_module(f"potstill.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
