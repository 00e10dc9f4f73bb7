"""The options of a run, section by section: frozen dataclasses, each option with its default, its range and its help text.

Every option's name is unique over all sections, so that it is one flag (`--inner-lr`), one keyword of
`potstill.distill` (`inner_lr=`) and one key of the TOML file (`[inner] inner_lr`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from potstill.options import Auto, option
from potstill.registry import AUGMENTATIONS

Unit = Literal["unit"]
Off = Literal["off"]
EVALUATION_DATA_OPTIONS = ("image_column", "label_column", "image_size", "storage", "cache_dir")
"""Options that tell how real data are read, not how they were distilled."""
TAPES = ("states", "sqrt", "host", "bfloat16")


@dataclass(frozen=True)
class DataConfig:
    """The real data and what is done to its pixels."""

    data: str = option("digits", "the real data: digits, sklearn:NAME, folder:PATH, parquet:PATH or hf:NAME (see `potstill list`)")
    image_column: str = option("auto", "column of the images in parquet or hf data")
    label_column: str = option("auto", "column of the labels in parquet or hf data")
    image_size: int = option(0, "resize the shorter side to this many pixels and crop the centre; 0: as they are", low=0)
    storage: Literal["auto", "memory", "mapped"] = option(
        "auto", "keep the data in memory, or memory-mapped on disk; auto: mapped above 4 GB of pixels"
    )
    cache_dir: str = option("", "folder for memory-mapped data; empty: the user's cache folder")
    validation: float = option(0.1, "share of the train split held out for every choice", low=0, high=0.5, open_low=True)
    split_seed: int = option(0, "seed of the held-out splits, apart from --seed so that runs share their test data", low=0)
    preprocess: str = option(
        "auto", "none, normalize (per channel), zca, your own as package.module:Name, or auto: zca up to 3,072 values an image, "
        "else normalize (paper D.1)"
    )  # fmt: skip
    zca_regularization: float = option(0.1, "ZCA: this times the mean eigenvalue is added to all (paper D.1)", low=0, open_low=True)

    @property
    def embedded(self) -> bool:
        """Whether the data come with scikit-learn, so that their name finds them everywhere."""
        return self.data.partition(":")[0] in ("digits", "sklearn")

    @property
    def name(self) -> str:
        """The data in a word: the last part of its path, or its kind."""
        kind, _, rest = self.data.partition(":")
        return Path(rest).stem or kind


@dataclass(frozen=True)
class DistilledConfig:
    """The synthetic set."""

    ipc: int = option(
        1, "images per class of the distilled set; with another --param than pixels the budget: at most the bytes of so many",
        low=1, also="budget_ipc",
    )  # fmt: skip
    param: str = option("pixels", "parameterisation: how images are stored (see `potstill list`)")
    factor: int = option(
        2, "multi-formation: parts on a side of a stored image; basis, factorised: bases are stored at 1 / this of the resolution",
        low=1,
    )  # fmt: skip
    bases: int | Auto = option(
        "auto", "basis: how many bases all classes share; auto: 16, fewer for small images or budgets", low=0
    )
    hallucinators: int = option(5, "factorised: how many networks every basis goes through", low=1)
    init: Literal["gaussian", "real"] = option("gaussian", "start: Gaussian images of norm 1 (paper D.1), or real images")
    learn_labels: bool = option(False, "learn soft labels with the images (paper D.1: all but CIFAR-10 IPC 1)")
    boost_blocks: int = option(
        1, "J, Boost-DD: distill the set in so many blocks, one after the other; the first ones are good sets of their size", low=1
    )  # fmt: skip
    boost_beta: float = option(
        0.0, "Boost-DD: factor on the learning rate of earlier blocks; 0: they stay as they are (strong), 0.1: weak, 1: joint",
        low=0, high=1,
    )  # fmt: skip
    block_ipc: int | Auto = option("auto", "Boost-DD: images per class of a block; auto: ipc / boost_blocks", low=1)

    @property
    def decoded(self) -> bool:
        """Whether images come out of something else that is stored."""
        return self.param != "pixels"

    @property
    def ipc_of_block(self) -> int:
        """`block_ipc` as a number."""
        return self.ipc // self.boost_blocks if self.block_ipc == "auto" else int(self.block_ipc)


@dataclass(frozen=True)
class InnerConfig:
    """The inner loop: a fresh network trained on the synthetic set."""

    model: str = option(
        "auto", "a model of `potstill list`, or your own as package.module:factory; auto: convnet for images, mlp for vectors"
    )
    width: int | Auto = option(
        "auto", "channels of the first convolution, or units of each MLP layer; auto: 128, or 64 of vgg11 and resnet18", low=1
    )
    depth: int | Auto = option("auto", "blocks of the network; auto: 3, or what the image size allows", low=1)
    norm: Literal["instance", "batch", "group", "layer", "none"] = option("instance", "normalisation in the ConvNet")
    inner_optimizer: Literal["adam", "sgd"] = option("adam", "optimizer that trains on the synthetic set")
    inner_lr: float = option(0.001, "learning rate of the inner optimizer (paper D.1)", low=0, open_low=True)
    eps_placement: Literal["torch", "higher-0.2.1"] = option(
        "torch", "Adam's eps after bias correction (torch), or before it (PyPI's higher 0.2.1, as in the released code)"
    )
    momentum: float = option(0.9, "momentum of SGD", low=0, high=1)
    weight_decay: float = option(0.0, "weight decay of SGD", low=0)
    lr_milestones: tuple[int, ...] = option((), "SGD: steps at which the learning rate is multiplied by lr_decay", low=1)
    lr_decay: float = option(0.2, "SGD: factor of each milestone (paper D.6)", low=0, high=1, open_low=True)
    batch_per_class: int | Auto = option("auto", "synthetic images of each class in a step; auto: all, up to 100 in total", low=1)
    classes_per_batch: int | Auto = option("auto", "random classes in a synthetic batch; auto: all", low=1)
    synthetic_micro_batch: int | Auto = option(
        "auto", "synthetic images at once on the device: bounds the memory, not the result (batch norm takes all)", low=1
    )
    augment: tuple[str, ...] = option((), f"augmentation, one of these a batch: {', '.join(AUGMENTATIONS)}; empty: none")


@dataclass(frozen=True)
class OuterConfig:
    """The outer loop: the synthetic set follows the meta-gradient."""

    method: str = option("rat-bptt", "distillation method (see `potstill list`)")
    unroll: int = option(60, "T: most inner steps of one outer step (paper D.2: about 3 windows)", low=1)
    window: int = option(20, "M: last inner steps that are differentiated", low=1)
    trajectories: int = option(
        1,
        "K: unrolls per outer step, each with its own start, window and batches; the mean of their meta-gradients is taken",
        low=1,
    )
    steps: int | Auto = option("auto", "outer steps for each block; auto: 400, dealt out to the blocks of a boosted set", low=1)
    outer_lr: float | Auto = option(
        "auto", "learning rate of the outer Adam on the images; auto: 0.001 for images of norm 1 and 3,072 values (paper D.1), "
        "elsewhere in proportion to the scale of the first images' pixels", low=0, open_low=True,
    )  # fmt: skip
    label_lr: float | Auto = option(
        "auto", "learning rate on learned labels; auto: outer_lr, or what auto is there for images of norm 1", low=0, open_low=True
    )
    clip: float | Unit = option(
        2.0, "clip the meta-gradient at this times its moving average; 0: never; unit: always give it norm 1 (paper D.4)", low=0
    )
    real_batch: int = option(500, "real images in the outer loss (paper D.1: 1,000 to 5,000)", low=1)
    split_real_batch: bool = option(False, "deal one real batch out to the trajectories, in place of one for each")
    real_augment: tuple[str, ...] | Auto = option("auto", "augmentation of the real batch; auto: as augment")
    micro_batch: int | Auto = option(
        "auto", "real images at once on the device: bounds the memory, not the result (but dropout draws anew in each)", low=1
    )
    validate_every: int = option(100, "outer steps between validations; the best set by validation is kept", low=1)
    checkpoint_every: int = option(100, "outer steps between checkpoints", low=1)
    keep_checkpoints: int = option(2, "how many of the newest checkpoints are kept; 0: all, to look back at a run's course", low=0)


@dataclass(frozen=True)
class SamplerConfig:
    """What some methods place their window by."""

    burn_in: int | Auto = option("auto", "fixed: inner steps before the window; auto: unroll - window", low=0)
    patience: int = option(
        50, "forward, backward: the window moves when the smoothed outer loss has not improved for so many outer steps", low=1
    )
    shift: int | Auto = option("auto", "forward, backward: inner steps by which the window moves; auto: window", low=1)
    grow_from: int | Auto = option("auto", "growing: inner steps of the first outer step; auto: unroll / 18 (paper D.4)", low=1)
    grow_over: int | Auto = option("auto", "growing: outer steps over which they grow to unroll; auto: all", low=1)
    early_weight: float = option(
        4.0, "early: how many times as likely as the last place of the window the first one is; 1: all the same", low=1
    )


@dataclass(frozen=True)
class HardnessConfig:
    """Real batches that hold more of the examples which networks trained on the synthetic set are divided about."""

    hardness_sampler: float | Off = option(
        "off", "least weight of a real image in the draw of a batch, as in 1 or 4 (paper E.2); off: all alike", low=0, open_low=True
    )
    hardness_reading: Literal["middle", "extremes"] = option(
        "middle", "most weight for middling hardness, as the paper's prose has it, or for both extremes, as its formula is printed"
    )
    hardness_score: Literal["label", "vote"] = option(
        "label", "hardness of an image: how many of the networks are wrong about it, or differ from their most frequent answer"
    )
    hardness_nets: int = option(8, "networks that are trained on the synthetic set to score the real images", low=1, high=255)
    hardness_every: int = option(50, "outer steps between scorings (paper E.2: 50 epochs)", low=1)
    hardness_from: int = option(0, "outer step of the first scoring; before it all images are alike (figure 17: 25,000)", low=0)


@dataclass(frozen=True)
class EvaluationConfig:
    """How long a network trains on the result: chosen on validation data."""

    lengths: tuple[int, ...] = option(
        (300, 600, 1000), "training lengths tried, in steps; the best on validation data is kept", low=1
    )
    validation_nets: int = option(3, "fresh networks in each validation", low=1)


@dataclass(frozen=True)
class RunConfig:
    """The machine and the randomness."""

    seed: int = option(0, "seed of every random draw but the data splits", low=0)
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "float32", "bfloat16"] = option(
        "auto", "arithmetic in the network; parameters, norms' statistics, loss and meta-gradient stay float32; auto: bfloat16 on "
        "CPUs with AMX and on CUDA from compute capability 8.0"
    )  # fmt: skip
    tf32: bool = option(False, "CUDA: allow TF32 in float32 convolutions and products")
    compile: Literal["auto", "on", "off"] = option(
        "auto", "compile gradient and Hessian product (half a minute, a few seconds in the next run); auto: in long runs"
    )
    tape: str = option(
        "states", "memory against time, what is kept of the window: states; sqrt: every sqrt(M)-th of them; host: states in host "
        "memory; bfloat16: rounded states; graphs:MB: states, and as many graphs as fit (see docs/speed.md)"
    )  # fmt: skip
    threads: int | Auto = option("auto", "CPU threads; results repeat to the byte only at the same number", low=1, high=4096)
