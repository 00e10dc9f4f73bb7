"""A method of your own, beside RaT-BPTT: one class, and everything of potstill works with it.

    python examples/own_method.py

The method below moves the distilled images so that the mean of their pixels, class by class, is
that of a real batch. It learns class means, no more; docs/methods.md tells what a method may do.
"""

import argparse

import torch

import potstill
from potstill.methods.base import Estimate, Method
from potstill.testing import check_method


class ClassMeans(Method):
    """Half the squared distance of class means, real and distilled."""

    def estimate(self, examples, learned, state, step):
        real = self.problem.real
        rows = real.sampler.draw(real.train, real.batch, self.problem.rng("real batch", step))
        images, labels = real.train.take(rows)
        grad, loss = torch.zeros_like(examples.images), torch.zeros(())
        for label in labels.unique().tolist():
            own = examples.labels == label
            apart = examples.images[own].mean(0) - images[labels == label].mean(0)
            grad[own] = apart / int(own.sum())
            loss = loss + apart.square().sum() / 2
        return Estimate(loss, {"images": grad}, state)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=150, help="outer steps")
    parser.add_argument("--nets", type=int, default=5)
    given = parser.parse_args()
    check_method(ClassMeans)  # what potstill asks of a method, tried
    common = {"data": "digits", "ipc": 1, "steps": given.steps, "width": 32, "lengths": (100, 300),
              "validation_nets": 2, "progress": False}  # fmt: skip
    for name, method in (("class means", "own_method:ClassMeans"), ("rat-bptt", "rat-bptt")):
        more = {"outer_lr": 0.5} if method != "rat-bptt" else {}
        distilled = potstill.distill(method=method, **common, **more)
        (row,) = potstill.evaluate(distilled, nets=given.nets, progress=False)
        print(f"{name:<14}{row.accuracy}")


if __name__ == "__main__":
    main()
