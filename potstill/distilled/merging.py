"""Several sets as one: of the same classes from different owners, or of different classes."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from potstill.data.layouts import listed
from potstill.data.preprocessing import Absent, Preprocess
from potstill.distilled.blocks import Block
from potstill.distilled.recipes import Recipe
from potstill.distilled.sets import DistilledSet, require_features, require_set
from potstill.errors import InputError
from potstill.records.metadata import SetMetadata
from potstill.registry import LEARNERS

TWO = 2


def merge(*sets: DistilledSet) -> DistilledSet:
    """Return one set of what several hold; networks train on it by the first one's recipe.

    Sets of the same classes stay blocks of their own, so that each of the first ones is a prefix,
    to the byte. Sets without a common class become one block, with the classes of the first set
    first. What was prepared by another fit of the same preprocessing is prepared by the first
    set's. Networks train for as long as the longest recipe says; that and the accuracy are not
    measured again: `potstill.evaluate` does.

    Args:
        *sets: at least two.
    Returns:
        The set; its metadata say nothing of a run, but name the features of vectors.
    Raises:
        InputError: the sets' shapes, preprocessing or learners differ, or their classes are neither
            the same nor all different.
    """
    for one in sets:
        require_set(one)
    if len(sets) < TWO:
        raise InputError(f"merging takes at least two sets, got {len(sets)}; name another")
    first = sets[0]
    for other in sets:
        require_alike(first, other)
    images = [prepared_as(first.fitted, one) for one in sets]
    learned = any(one.learned_labels for one in sets)
    names = [set(one.class_names) for one in sets]
    if all(name == names[0] for name in names):
        blocks = blocks_of_same(sets, images, learned=learned)
        classes: tuple[str, ...] = first.class_names
    elif len(set().union(*names)) == sum(map(len, names)):
        blocks = (block_of_different(sets, images, learned=learned),)
        classes = tuple(name for one in sets for name in one.class_names)
    else:
        twice = next(name for name in first.class_names if any(name in own for own in names[1:]))
        raise InputError(
            "sets to merge must have the same classes, or none in common; only some have the class "
            f"{twice!r}: rename classes, or distill the rest alone"
        )
    per_class = sum(block.parameterisation.per_class for block in blocks)
    recipe = recipe_of([one.recipe for one in sets], len(first.class_names), per_class, classes)
    features = next((one.known_features for one in sets if one.known_features), ())
    return DistilledSet(
        blocks,
        classes,
        first.fitted,
        recipe,
        learned_labels=learned,
        metadata=SetMetadata(features=features),
    )


def require_alike(first: DistilledSet, other: DistilledSet) -> None:
    """Raise an InputError if two sets cannot be examples for the same networks."""
    for one in (first, other):
        if isinstance(one.fitted, Absent):
            raise InputError(f"{one.fitted.missing}; merging needs the whole sets")
    if first.kind != other.kind:
        raise InputError(
            f"sets to merge must hold examples of one kind, got {first.noun}s and {other.noun}s; "
            "merge those of one kind"
        )
    if first.shape != other.shape:
        raise InputError(
            f"sets to merge must hold {first.noun}s of one shape, got {first.shape} and "
            f"{other.shape}; distill "
            + ("with the same --image-size" if len(first.shape) > 1 else "the same features")
        )
    require_features(
        "sets to merge must have the same features, those of the first",
        other.known_features,
        first.known_features,
        "distill one of them again, with its columns renamed or reordered",
    )
    if first.fitted.name != other.fitted.name:
        raise InputError(
            f"sets to merge must have the same preprocessing, got {first.fitted.name} and "
            f"{other.fitted.name}; distill one of them again with --preprocess {first.fitted.name}"
        )
    if first.recipe.learner != other.recipe.learner:
        raise InputError(
            f"sets to merge must be for the same learner, got {first.recipe.learner} and "
            f"{other.recipe.learner}; distill them by the same method"
        )
    same = first.class_names == other.class_names
    if LEARNERS[first.recipe.learner].signed and not same:
        raise InputError(
            "sets whose labels are targets of a regression can be merged only with the same "
            f"classes in the same order, got {listed(first.class_names)} and "
            f"{listed(other.class_names)}"
        )


def prepared_as(fitted: Preprocess, one: DistilledSet) -> Tensor:
    """Return a set's images as a preprocessing would have prepared what they stand for."""
    ours, theirs = fitted.state(), one.fitted.state()
    if ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours):
        return one.images.clone()  # a file holds no tensor twice, and a set may be given twice
    return fitted(one.fitted.inverse(one.images))


def blocks_of_same(
    sets: Sequence[DistilledSet], images: Sequence[Tensor], *, learned: bool
) -> tuple[Block, ...]:
    """Return the blocks of sets with the same classes, in the order of the first one's.

    Args:
        sets: the sets.
        images: of each, prepared alike.
        learned: whether labels are stored.
    """
    first, blocks = sets[0], list[Block]()
    for one, own in zip(sets, images, strict=True):
        as_they_are = one.class_names == first.class_names and own is one.images
        if as_they_are and one.learned_labels == learned:
            blocks += one.blocks
            continue
        order = [one.class_names.index(name) for name in first.class_names]
        rows = torch.cat([torch.nonzero(one.labels == label)[:, 0] for label in order])
        targets = one.targets[rows][:, order] if learned else None
        blocks.append(Block.of_pixels(own[rows], len(order), targets))
    return tuple(blocks)


def block_of_different(
    sets: Sequence[DistilledSet], images: Sequence[Tensor], *, learned: bool
) -> Block:
    """Return the block of sets without a common class.

    Args:
        sets: the sets.
        images: of each, prepared alike.
        learned: whether labels are stored.
    """
    counts = [one.per_class for one in sets]
    if len(set(counts)) > 1:
        raise InputError(
            "sets of different classes must have equally many examples of each, got "
            f"{' and '.join(map(str, counts))}; merge prefixes of nested sets, or distill again"
        )
    # A set's examples stand class by class but for those of several blocks.
    order = [one.labels.argsort(stable=True) for one in sets]
    joined = torch.cat([own[rows] for own, rows in zip(images, order, strict=True)])
    targets = torch.block_diag(*(one.targets[rows] for one, rows in zip(sets, order, strict=True)))
    return Block.of_pixels(joined, targets.shape[1], targets if learned else None)


def recipe_of(
    recipes: Sequence[Recipe], before: int, per_class: int, classes: Sequence[str]
) -> Recipe:
    """Return the first recipe, for a larger set.

    Args:
        recipes: of the sets.
        before: classes of the first set.
        per_class: examples of each class in the merged set.
        classes: its classes.
    """
    first = recipes[0]
    whole = first.classes_per_batch == before
    return replace(
        first,
        steps=max(recipe.steps for recipe in recipes),
        batch_per_class=min(per_class, sum(recipe.batch_per_class for recipe in recipes)),
        classes_per_batch=len(classes) if whole else first.classes_per_batch,
    )
