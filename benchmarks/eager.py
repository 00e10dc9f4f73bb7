"""The published matching methods in plain PyTorch, from their equations: the rivals of methods.py.

They work as the released scripts do in principle: an nn.Module in training mode, its gradients with
`create_graph`, whole batches, one graph of all that a step computes. Nothing makes them faster, and
nothing makes them slower than what a reader of the papers would write first. The network and the
operations of the augmentation are those of potstill, so that both compute the same function.

Every function returns (loss, gradient by name: "images", and "lr" where it is learned).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from potstill.data import augmentation
from potstill.data.augmentation import Draw

Found = tuple[float, dict[str, Tensor]]
Gradients = Sequence[Tensor]
IDC_SHARED, IDC_TRAINING = ("color", "crop", "cutout"), ("color", "crop")
"""IDC's operations, all of them in every draw: in matching, and in training on real images."""
TRAINING_LR = 0.01


@dataclass(frozen=True)
class ClassBatch:
    """What a step shows of one class.

    Args:
        label: the class.
        real: (B, C, H, W) real images.
        rows: indices of its distilled images.
        drawn: augmentations, one after the other, that both sides share.
    """

    label: int
    real: Tensor
    rows: Tensor
    drawn: tuple[Draw, ...]

    def augmented(self, images: Tensor) -> Tensor:
        """Augment images as drawn."""
        for drawn in self.drawn:
            images = augmentation.apply(images, drawn)
        return images

    def loss(self, network: nn.Module, images: Tensor) -> Tensor:
        """Compute the mean cross-entropy of a network on augmented images of the class."""
        labels = torch.full((len(images),), self.label)
        return F.cross_entropy(network(self.augmented(images)), labels)


def dm(network: nn.Module, images: Tensor, batches: Sequence[ClassBatch]) -> Found:
    """DM: sum over classes of | mean phi(A x_r) - mean phi(A x_s) |^2, and its gradient.

    Args:
        network: with `features`; its parameters are frozen.
        images: (n, C, H, W) distilled ones.
        batches: one of each class.
    """
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    images, loss = images.detach().requires_grad_(), images.new_zeros(())
    features: Callable[[Tensor], Tensor] = network.features  # type: ignore[assignment]
    for batch in batches:
        real = features(batch.augmented(batch.real)).detach().mean(0)
        own = features(batch.augmented(images[batch.rows])).mean(0)
        loss = loss + (real - own).square().sum()
    return float(loss.detach()), {"images": torch.autograd.grad(loss, images)[0]}


def by_rows(own: Gradients, wanted: Gradients) -> Tensor:
    """DC's distance: 1 - cosine, summed over the rows of weights."""
    total = own[0].new_zeros(())
    for one, other in zip(own, wanted, strict=True):
        if one.dim() > 1:
            one, other = one.flatten(1), other.flatten(1)
            norms = one.norm(dim=1) * other.norm(dim=1)
            total = total + (1 - (one * other).sum(1) / (norms + 1e-6)).sum()
    return total


def squares(own: Gradients, wanted: Gradients) -> Tensor:
    """IDC's distance: the squared difference, summed over the weights of convolutions."""
    total = own[0].new_zeros(())
    for one, other in zip(own, wanted, strict=True):
        if one.dim() == 4:
            total = total + (one - other).square().sum()
    return total


def dc(network: nn.Module, images: Tensor, batches: Sequence[ClassBatch]) -> Found:
    """DC and DSA: the distance of real and distilled gradients by rows, summed over classes.

    The graphs of all classes live until one backward, since one step moves all images.

    Args:
        network: at the parameters where gradients are matched.
        images: (n, C, H, W) distilled ones.
        batches: one of each class.
    """
    images, loss = images.detach().requires_grad_(), images.new_zeros(())
    for batch in batches:
        loss = loss + apart(network, images[batch.rows], batch, by_rows)
    return float(loss.detach()), {"images": torch.autograd.grad(loss, images)[0]}


def idc(network: nn.Module, sheets: Tensor, batches: Sequence[ClassBatch], factor: int) -> Found:
    """IDC: the squared distance of gradients on real images and on the parts of stored ones.

    Every class has a backward of its own, as it has an image step of its own.

    Args:
        network: at the parameters where gradients are matched.
        sheets: (n, C, H, W) stored images.
        batches: one of each class.
        factor: parts on a side of a stored image.
    """
    sheets, total = sheets.detach().requires_grad_(), 0.0
    grad = torch.zeros_like(sheets)
    for batch in batches:
        loss = apart(network, decoded(sheets[batch.rows], factor), batch, squares)
        grad += torch.autograd.grad(loss, sheets)[0]
        total += float(loss.detach())
    return total, {"images": grad}


def apart(
    network: nn.Module,
    images: Tensor,
    batch: ClassBatch,
    distance: Callable[[Gradients, Gradients], Tensor],
) -> Tensor:
    """Return the distance of the gradients on both sides, differentiable in the images.

    Args:
        network: at the parameters where gradients are matched.
        images: distilled ones of the class.
        batch: of the class.
        distance: (own, wanted) -> scalar.
    """
    parameters = list(network.parameters())
    wanted = torch.autograd.grad(batch.loss(network, batch.real), parameters)
    own = torch.autograd.grad(batch.loss(network, images), parameters, create_graph=True)
    return distance(own, wanted)


def decoded(sheets: Tensor, factor: int) -> Tensor:
    """Cut stored images into factor x factor parts, each enlarged to the full size."""
    height, width = sheets.shape[2] // factor, sheets.shape[3] // factor
    parts = [
        sheets[:, :, top : top + height, left : left + width]
        for top in range(0, sheets.shape[2], height)
        for left in range(0, sheets.shape[3], width)
    ]
    size = sheets.shape[2:]
    return F.interpolate(torch.cat(parts), size=size, mode="bilinear", align_corners=False)


def shuffled(count: int, size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield the batches of an epoch, as indices."""
    yield from torch.randperm(count, generator=rng).split(size)


def train_on_set(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    operations: tuple[str, ...],
    rng: torch.Generator,
) -> None:
    """Train a network on the set between two steps of DC or DSA: SGD at .01, batches of 256.

    Args:
        network: is changed.
        images: (n, C, H, W) distilled ones.
        labels: (n,) their classes.
        epochs: how many.
        operations: of the augmentation: one a batch, parameters for each image.
        rng: of all draws.
    """
    rule = torch.optim.SGD(network.parameters(), TRAINING_LR)
    for _ in range(epochs):
        for rows in shuffled(len(images), 256, rng):
            drawn = augmentation.draw(operations, len(rows), rng)
            rule.zero_grad()
            batch = augmentation.apply(images[rows], drawn)
            F.cross_entropy(network(batch), labels[rows]).backward()
            rule.step()


def train_on_real(
    network: nn.Module, images: Tensor, labels: Tensor, rng: torch.Generator, size: int = 64
) -> None:
    """Train a network on real images between two steps of IDC: an epoch with CutMix.

    Args:
        network: is changed.
        images: (n, C, H, W) real ones.
        labels: (n,) their classes.
        rng: of all draws.
        size: images in a batch.
    """
    rule = torch.optim.SGD(network.parameters(), TRAINING_LR, momentum=0.9, weight_decay=5e-4)
    for rows in shuffled(len(images), size, rng):
        batch, own = images[rows], labels[rows]
        for operation in IDC_TRAINING:
            batch = augmentation.apply(batch, augmentation.draw((operation,), len(rows), rng))
        rule.zero_grad()
        if float(torch.rand((), generator=rng)) < 0.5:
            batch, other, share = cut_and_mixed(batch, own, rng)
            logits = network(batch)
            loss = share * F.cross_entropy(logits, own) + (1 - share) * F.cross_entropy(
                logits, other
            )
        else:
            loss = F.cross_entropy(network(batch), own)
        loss.backward()
        rule.step()


def cut_and_mixed(
    images: Tensor, labels: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor, float]:
    """CutMix: put one rectangle of other images of the batch into each.

    The share of the area that is left is uniform, that is Beta(1, 1), before the border cuts it.

    Returns:
        The images, the labels of what was put in, and the share that is left.
    """
    height, width = images.shape[2:]
    side = (1 - float(torch.rand((), generator=rng))) ** 0.5
    spans = []
    for length in (height, width):
        centre, half = float(torch.rand((), generator=rng)) * length, side * length / 2
        spans.append(slice(max(0, round(centre - half)), min(length, round(centre + half))))
    order = torch.randperm(len(images), generator=rng)
    images = images.clone()
    images[:, :, spans[0], spans[1]] = images[order][:, :, spans[0], spans[1]]
    area = (spans[0].stop - spans[0].start) * (spans[1].stop - spans[1].start)
    return images, labels[order], 1 - area / (height * width)


class Functional:
    """A network as a function of one flat parameter vector."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.shapes = {name: p.shape for name, p in network.named_parameters()}

    def loss(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean cross-entropy at parameters theta (P,)."""
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        named = {
            name: part.view(shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }
        logits = torch.func.functional_call(self.network, named, (images,))
        return F.cross_entropy(logits, labels)


@dataclass(frozen=True)
class Student:
    """A student that starts where an expert was, and is to arrive where it went.

    Args:
        network: of the expert's structure.
        start: (P,) parameters of the expert.
        target: (P,) its parameters some epochs later.
        labels: (n,) classes of the distilled images, all of which make up every batch.
        draws: how each step augments its batch; as many steps are taken.
    """

    network: Functional
    start: Tensor
    target: Tensor
    labels: Tensor
    draws: Sequence[Draw]


def mtt(student: Student, images: Tensor, lr: Tensor) -> Found:
    """MTT: |theta_N - target|^2 / |theta_0 - target|^2, differentiated through all N steps.

    Args:
        student: the student.
        images: (n, C, H, W) distilled ones.
        lr: 0-d, learned.
    """
    images, lr = images.detach().requires_grad_(), lr.detach().requires_grad_()
    theta = student.start.detach().requires_grad_()
    for drawn in student.draws:
        batch = augmentation.apply(images, drawn)
        loss = student.network.loss(theta, batch, student.labels)
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        theta = theta - lr * grad
    whole = (student.start - student.target).square().sum()
    distance = (theta - student.target).square().sum() / whole
    of_images, of_lr = torch.autograd.grad(distance, (images, lr))
    return float(distance.detach()), {"images": of_images, "lr": of_lr}


def tesla(student: Student, images: Tensor, lr: Tensor) -> Found:
    """TESLA: the same loss, every theta_i held constant in its gradient; two passes.

    Args:
        student: the student.
        images: (n, C, H, W) distilled ones.
        lr: 0-d, learned.
    """
    images = images.detach().requires_grad_()
    theta, steps = student.start.detach(), []
    total = torch.zeros_like(theta)
    for drawn in student.draws:
        steps.append(theta.requires_grad_())
        batch = augmentation.apply(images.detach(), drawn)
        (grad,) = torch.autograd.grad(student.network.loss(theta, batch, student.labels), theta)
        total += grad
        theta = (theta - lr * grad).detach()
    away = student.start - student.target
    whole = away.square().sum()
    missed = away - lr * total
    along = -2 * lr * missed / whole
    of_images = torch.zeros_like(images)
    for theta, drawn in zip(steps, student.draws, strict=True):
        batch = augmentation.apply(images, drawn)
        loss = student.network.loss(theta, batch, student.labels)
        (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
        of_images += torch.autograd.grad(along @ grad, images)[0]
    of_lr = -2 * (total @ missed) / whole
    return float(missed.square().sum() / whole), {"images": of_images, "lr": of_lr}
