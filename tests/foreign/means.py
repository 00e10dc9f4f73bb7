"""A method of someone else's: distilled images whose class means are those of the real images.

It has all that a method may have: options, something that is prepared once, a tensor in its state,
    and a value that it learns beside the set.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from potstill.config.options import option
from potstill.methods.base import Estimate, Learnable, Method, Needs


@dataclass(frozen=True)
class Options:
    """Options of the method."""

    faith: float = option(
        0.5, "share of the whole data's means beside a running one", low=0, high=1
    )
    mean_batch: int = option(40, "real images that the running means see in a step", low=1)


class Means(Method):
    """Minimise sum over classes of |scale * mean of the distilled images - mean of the real
    ones|^2.
    """

    Options: ClassVar[type] = Options
    needs: ClassVar[Needs] = Needs(targets="classes", unused=("real_batch",))
    defaults: ClassVar[dict] = {
        "outer_optimizer": "sgd",
        "outer_momentum": 0.5,
        "outer_lr": 1.0,
        "clip": 0,
    }

    def prepare(self, cache):
        self.means = cache.get("class means", self.class_means)["means"].to(self.problem.device)

    def class_means(self):
        """Average all real images of each class."""
        real = self.problem.real
        images, labels = real.train.take(torch.arange(len(real.train)))
        return {"means": self.by_class(images, labels)}

    def by_class(self, images, labels):
        """Average images by class; 0 for a class without any."""
        chosen = torch.nn.functional.one_hot(labels, self.problem.real.classes).to(images)
        return (chosen.T @ images.flatten(1)) / chosen.sum(0).clamp_min(1)[:, None]

    def start(self):
        running = torch.zeros(self.problem.real.classes, self.size, device=self.problem.device)
        scale = torch.tensor(0.5, device=self.problem.device)
        return {"running": running, "seen": 0}, {"scale": Learnable(scale, 0.01, least=0.1)}

    @property
    def size(self):
        """Numbers in an image."""
        return torch.Size(self.problem.networks.shape).numel()

    def estimate(self, examples, learned, state, step):
        real, options = self.problem.real, self.options
        chosen = real.sampler.draw(
            real.train, options.mean_batch, self.problem.rng("real batch", step)
        )
        seen = state["seen"] + 1
        running = (
            state["running"] + (self.by_class(*real.train.take(chosen)) - state["running"]) / seen
        )
        target = options.faith * self.means + (1 - options.faith) * running
        images = examples.images.detach().requires_grad_()
        scale = learned["scale"].detach().requires_grad_()
        loss = (scale * self.by_class(images, examples.labels) - target).square().sum(1).mean()
        of_images, of_scale = torch.autograd.grad(loss, (images, scale))
        after = {"running": running, "seen": seen}
        return Estimate(
            float(loss.detach()),
            {"images": of_images, "scale": of_scale},
            after,
            {"scale": float(learned["scale"])},
        )

    @classmethod
    def words(cls, options):
        return [("Faith", f"{options.faith:g} in the means of all images")]
