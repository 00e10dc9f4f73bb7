"""Whether the parts of a configuration, the data and the ranks go together, before any work."""

from collections.abc import Callable

from potstill.config.config import Given
from potstill.data.augmentation import check_operations
from potstill.data.preprocessing import preprocessing
from potstill.data.splits import NOUNS, Shape, kind_of, require_kind
from potstill.distributed.ranks import Ranks
from potstill.errors import InputError
from potstill.methods.base import Method
from potstill.models import ModelSpec, resolve
from potstill.parameterisations.base import Parameterisation
from potstill.parameterisations.pixels import Pixels
from potstill.registry import METHODS


def check_dealt(
    config: Given, method: type[Method], ranks: Ranks, say: Callable[[str], None]
) -> None:
    """Check that every rank has work.

    Args:
        config: the options.
        method: the method's class.
        ranks: the processes that share the run.
        say: receives a sentence if the gain is small.
    Raises:
        InputError: a rank would have nothing to do.
    """
    if ranks.count == 1:
        return
    parts = method.dealt(config.method.options)
    if parts is None:
        say(
            f"method {config.method.name} computes its outer steps on every rank; only evaluation "
            "is dealt out"
        )
    elif parts < ranks.count:
        raise InputError(
            f"trajectories must be at least the number of ranks, {ranks.count}, since a step deals "
            f"them out, got {parts}; give --trajectories {ranks.count}, or start fewer ranks"
        )


def check_kinds(config: Given, shape: Shape, model: ModelSpec) -> None:
    """Raise an InputError if a part of the configuration does not take examples of this shape."""
    kind, own, method = kind_of(shape), config.preprocessing.name, config.method.name
    kinds = METHODS[method].needs.kinds
    if kind not in kinds:
        raise InputError(
            f"method {method} takes {' and '.join(NOUNS[one] for one in kinds)}s, the data are "
            f"{NOUNS[kind]}s; use another --method"
        )
    if own != "auto":
        require_kind(kind, f"preprocessing {own}", preprocessing(own), "use --preprocess none")
    operations = config.inner.augment
    check_operations(
        operations if isinstance(operations, tuple) else (), shape, "use --augment none"
    )
    resolve(model, shape, 2)


def check_batch(config: Given, one: Parameterisation, classes: int) -> None:
    """Raise an InputError if a synthetic batch is to hold more than the set has."""
    per_class, per_batch = config.inner.batch_per_class, config.inner.classes_per_batch
    held = one.per_class * config.distilled.boost_blocks
    if per_class != "auto" and int(per_class) > held:
        raise InputError(
            f"batch_per_class must be at most the {held} images of each class, got {per_class}; "
            "leave it at auto"
        )
    if per_batch != "auto" and int(per_batch) > classes:
        raise InputError(
            f"classes_per_batch must be at most the number of classes, {classes}, got {per_batch}"
        )


def check_clamp(config: Given, one: Parameterisation, kind: str) -> None:
    """Raise an InputError if pixels are to be clamped that have no bounds.

    Args:
        config: the options, with the preprocessing decided.
        one: the parameterisation of each block.
        kind: of the data.
    """
    if not config.outer.clamp:
        return
    way_out = "leave --clamp out"
    if kind != "image":
        raise InputError(
            f"clamp keeps pixels of images within bounds, the data are rows; {way_out}"
        )
    if config.preprocessing.name not in ("none", "normalize"):
        raise InputError(
            "clamp needs pixels whose bounds are known, as --preprocess none and normalize have "
            f"them, got {config.preprocessing.name}; {way_out}"
        )
    if not one.pixels:
        raise InputError(
            "clamp needs images that are stored as pixels, as --param pixels and multi-formation "
            f"do, got {config.parameterisation.name}; {way_out}"
        )


def check_storable(config: Given, method: type[Method], one: Parameterisation, noun: str) -> None:
    """Raise an InputError if a method chooses real examples and the set cannot hold them.

    Args:
        config: the options.
        method: the method's class.
        one: the parameterisation of each block.
        noun: what an example is called.
    """
    if method.needs.pixels and not isinstance(one, Pixels):
        raise InputError(
            f"method {config.method.name} chooses real {noun}s, which only --param pixels can "
            f"store as they are, got {config.parameterisation.name}; leave --param out"
        )


def check_coupling(config: Given, method: type[Method], noun: str) -> None:
    """Raise an InputError if a method does not take a network with batch norm.

    Args:
        config: the options.
        method: the method's class.
        noun: what an example is called.
    """
    if method.needs.uncoupled:
        raise InputError(
            f"method {config.method.name} needs a network that sees each {noun} by itself, one "
            "with batch norm mixes those of a batch; take another, such as --model convnet, or "
            "--norm instance"
        )
