"""Tables of named parts. A part is imported only when it is asked for."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from potstill.errors import InputError, near_miss
from potstill.imports import PATH, find_modules_here, import_object, split_path, trust, trusted


class Registry:
    """Name -> part of one kind ("method", "model", ...).

    An unknown name raises an error that tells the nearest registered one.

    A name with a colon is a user's own part, "package.module:name", and is imported from there;
    unless it is of a family, such as "timm:resnet18", whose function finds the part by its name.

    Args:
        kind: what the parts are, for messages.
        families: family -> (the function, one line of description).
        rows: name -> ("module:object", one line of description) and, as a third, where a paper
            describes it; an underscore in a name reads as a hyphen.
    """

    def __init__(
        self,
        kind: str,
        families: Mapping[str, tuple[str, str]] | None = None,
        **rows: tuple[str, str] | tuple[str, str, str],
    ):
        self.kind = kind
        self.families = families or {}
        self.rows = {name.replace("_", "-"): row for name, row in rows.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def check(self, name: str) -> None:
        """Raise an InputError unless `name` is registered, or has the form "package.module:name".

        Nothing is imported: a configuration can be read where a part that it names is not at hand.
        """
        family, colon, rest = name.partition(":")
        if colon and family in self.families:
            if not rest:
                raise InputError(f"{self.kind} {name} lacks a name; give one, {name}NAME")
        elif colon:
            split_path(name)
        elif name not in self.rows:
            known = ", ".join(sorted(self.rows))
            raise InputError(
                f"unknown {self.kind} {name!r}{near_miss(name, self.rows)}; known: {known}"
            )

    def __getitem__(self, name: str) -> Any:
        self.check(name)
        if ":" not in name:
            return import_object(self.rows[name][0])
        family, _, rest = name.partition(":")
        if family in self.families:
            return import_object(self.families[family][0])(rest)
        if not trusted(name):
            package = name.partition(":")[0]
            raise InputError(
                f"{self.kind} {name} is named by a file, and using it would run the code of "
                f"{package}; if you know it, name it yourself on the command line or in Python, or "
                f"allow it with --trust {package} (in Python potstill.trust({package!r}))"
            )
        find_modules_here()
        return import_object(name)

    def name_of(self, part: Any) -> str:
        """Return the first registered name of `part`, a class or function.

        It is the part's path, "package.module:name", if it is not registered.
        """
        path = f"{part.__module__}:{part.__qualname__}"
        return next((name for name, row in self.rows.items() if row[0] == path), path)

    def described(self, *, sourced: bool = False) -> list[tuple[str, str]]:
        """List (name, one line of description) of every part, in order of registration.

        Args:
            sourced: whether a line ends with where a paper describes the part.
        """
        return [
            (name, with_source(row[1], row[2] if sourced and len(row) == 3 else ""))
            for name, row in self.rows.items()
        ] + [(f"{family}:NAME", line) for family, (_, line) in self.families.items()]


def with_source(line: str, source: str) -> str:
    """Return a line with its source in brackets, if there is one."""
    return f"{line} ({source})" if source else line


SOURCES = Registry(
    "data source",
    digits=(
        "potstill.data.sources:read_digits",
        "1,797 grey 8 x 8 digits that scikit-learn carries (default)",
    ),
    sklearn=(
        "potstill.data.sources:read_sklearn",
        "sklearn:NAME: a table that scikit-learn carries: breast_cancer, digits, iris, wine",
    ),
    folder=(
        "potstill.data.folders:read_folder",
        "folder:PATH: class sub-folders of images, with or without train/ and test/; CUB-200-2011 "
        "and Tiny-ImageNet as they come; or images with a metadata.csv or .jsonl",
    ),
    archive=(
        "potstill.data.packed:read_archive",
        "archive:PATH: a zip or tar (.gz, .xz, .bz2) of such folders, read without unpacking it",
    ),
    webdataset=(
        "potstill.data.shards:read_shards",
        "webdataset:PATH: tar files of key.jpg with key.cls or key.json; one, or a folder of them",
    ),
    idx=(
        "potstill.data.idx:read_idx",
        "idx:PATH: MNIST's files, train-images-idx3-ubyte(.gz), ...: their folder, or one of them",
    ),
    parquet=(
        "potstill.data.tables:read_parquet",
        "parquet:PATH: Hugging Face layout; a file, or a folder of train and test files",
    ),
    npz=(
        "potstill.data.npz:read_npz",
        "npz:PATH: NumPy arrays x_train, y_train, x_test, ... or images and labels",
    ),
    csv=(
        "potstill.data.csv_files:read_csv",
        "csv:PATH: image files with their labels (and splits), or a table of numbers",
    ),
    hf=(
        "potstill.data.hub:read_hub",
        "hf:NAME: a data set of the Hugging Face hub (pip install 'potstill[hf]')",
    ),
)
MODELS = Registry(
    "model",
    {
        "timm": (
            "potstill.models.timm_networks:network",
            "a network of timm for images, such as timm:resnet18 (pip install 'potstill[timm]')",
        )
    },
    convnet=(
        "potstill.models.convnet:ConvNet",
        "the paper's ConvNet: 3 x 3 convolution, norm, ReLU, average pool, repeated",
    ),
    convnet_wide=(
        "potstill.models.convnet:WideConvNet",
        "the ConvNet with 2 and 4 times the channels in later blocks",
        "table 1",
    ),
    vgg11=("potstill.models.vgg:VGG11", "VGG-11 for small images", "table 3"),
    alexnet=("potstill.models.alexnet:AlexNet", "AlexNet for small images", "table 3"),
    resnet18=("potstill.models.resnet:ResNet18", "ResNet-18 for small images", "table 3"),
    mlp=("potstill.models.mlp:MLP", "fully connected layers with ReLU between them"),
)
METHODS = Registry(
    "method",
    rat_bptt=(
        "potstill.methods.unrolled:RatBptt",
        "N ~ U{M..T} inner steps, the last M differentiated: RaT-BPTT (default)",
    ),
    bptt=(
        "potstill.methods.unrolled:Bptt",
        "T inner steps, every one differentiated",
        "equation 2",
    ),
    t_bptt=(
        "potstill.methods.unrolled:TBptt",
        "T inner steps, the last M differentiated",
        "equation 3",
    ),
    r_bptt=("potstill.methods.unrolled:RBptt", "N ~ U{1..T} inner steps, every one differentiated"),
    early=(
        "potstill.methods.unrolled:Early",
        "as rat-bptt, but early places of the window are likelier",
        "section 4.3",
    ),
    forward=(
        "potstill.methods.unrolled:Forward",
        "M differentiated steps, towards T when the loss stagnates",
        "figure 5",
    ),
    backward=(
        "potstill.methods.unrolled:Backward",
        "M differentiated steps, from T towards the start likewise",
        "figure 5",
    ),
    fixed=(
        "potstill.methods.unrolled:Fixed",
        "always the same steps before the M differentiated ones",
        "released commands",
    ),
    growing=(
        "potstill.methods.unrolled:Growing",
        "every step differentiated, ever more of them up to T",
        "appendix D.4",
    ),
    dm=(
        "potstill.methods.matching:DistributionMatching",
        "means of features of fresh random networks, class by class: DM",
    ),
    dc=(
        "potstill.methods.gradients:DC",
        "gradients on networks that train on the set, class by class: DC",
    ),
    dsa=(
        "potstill.methods.gradients:DSA",
        "the same under an augmentation that real and synthetic images share: DSA",
    ),
    idc=(
        "potstill.methods.idc:IDC",
        "gradients of convolutions on networks that train on real data, many parts an image: IDC",
    ),
    mtt=(
        "potstill.methods.trajectories:MTT",
        "a student's steps lead where epochs of experts do: MTT",
    ),
    tesla=(
        "potstill.methods.trajectories:Tesla",
        "MTT's loss by a cheaper, truncated gradient, with experts' labels: TESLA",
    ),
    ftd=(
        "potstill.methods.trajectories:FTD",
        "MTT with flat experts and a running average of the set: FTD",
    ),
    haba=(
        "potstill.methods.haba:HaBa",
        "MTT of bases that are seen through hallucinators, kept apart by an adversary: HaBa",
    ),
    kip=(
        "potstill.methods.kip:Kip",
        "kernel regression, of an infinitely wide network, on the set predicts real images: KIP",
    ),
    label_solve=(
        "potstill.methods.kip:LabelSolve",
        "real examples whose labels, in closed form, let that regression err least: KIP's",
    ),
    frepo=(
        "potstill.methods.frepo:Frepo",
        "ridge regression on features of networks that train on the set, a pool of them: FRePo",
    ),
    rfad=(
        "potstill.methods.rfad:Rfad",
        "ridge regression on features of fresh random networks, several a step: RFAD",
    ),
    rcig=(
        "potstill.methods.rcig:Rcig",
        "implicit gradients of networks that are linear in their parameters around a pool's: RCIG",
    ),
    random=("potstill.methods.coresets:Random", "real examples at random; nothing is learned"),
    herding=(
        "potstill.methods.coresets:Herding",
        "real examples whose mean is nearest to their class's; nothing is learned",
    ),
    k_center=(
        "potstill.methods.coresets:KCenter",
        "real examples that leave none far from all of them; nothing is learned",
    ),
    imported=(
        "potstill.methods.imported:Imported",
        "a set that others have distilled, from their file; nothing is learned",
    ),
)
REAL_SAMPLERS = Registry(
    "real sampler",
    uniform=(
        "potstill.data.sampling:Plain",
        "every real image alike, or by weights of your own (default)",
    ),
    balanced=("potstill.data.sampling:Even", "equally many real images of every class"),
    hardness=(
        "potstill.evaluation.hardness:ByHardness",
        "more of those that networks on the set disagree on",
        "appendix E.2",
    ),
    k_means=(
        "potstill.evaluation.representatives:ByClusters",
        "those nearest to the centres of clusters of their class (DREAM)",
    ),
)
PARAMETERISATIONS = Registry(
    "parameterisation",
    pixels=("potstill.parameterisations.pixels:Pixels", "every image by its own pixels (default)"),
    multi_formation=(
        "potstill.parameterisations.formation:MultiFormation",
        "each stored image is a sheet of smaller ones (IDC)",
    ),
    basis=(
        "potstill.parameterisations.basis:Basis",
        "images are combinations of a few bases that all classes share (LinBa)",
    ),
    factorised=(
        "potstill.parameterisations.factorised:Factorised",
        "bases seen through small hallucination networks (HaBa)",
    ),
)
OPTIMIZERS = Registry(
    "optimizer",
    adam=(
        "potstill.engine.optimizers:Adam",
        "Adam; eps after bias correction (torch) or before it (higher 0.2.1)",
    ),
    adabelief=(
        "potstill.engine.optimizers:AdaBelief",
        "Adam whose second moment is that of what the first did not foresee",
    ),
    lamb=(
        "potstill.engine.optimizers:Lamb",
        "Adam, whose step is a share of the norm of what it moves; for the set only",
    ),
    sgd=(
        "potstill.engine.optimizers:SGD",
        "SGD with momentum, weight decay and step decay of the learning rate",
    ),
)
PROTOCOLS = Registry(
    "protocol",
    validation=(
        "potstill.evaluation.protocols:VALIDATION",
        "the set's own recipe; validation data chose or choose the length (default)",
    ),
    paper=(
        "potstill.evaluation.protocols:PAPER",
        "best of 300, 600, 1,000, 3,000 steps on the test set, as in RaT-BPTT's code: optimistic",
    ),
    dsa_1000=(
        "potstill.evaluation.protocols:DSA_1000",
        "as DSA and DM are evaluated: 1,001 epochs of SGD, augmented, tested once",
    ),
    dsa_1000_digits=(
        "potstill.evaluation.protocols:DSA_1000_DIGITS",
        "the same without flip, as DSA and DM are evaluated on digits",
    ),
    dsa_300=(
        "potstill.evaluation.protocols:DSA_300",
        "the same for 301 epochs, for tables that are made on a CPU",
    ),
    dsa_300_digits=(
        "potstill.evaluation.protocols:DSA_300_DIGITS",
        "that without flip",
    ),
    mtt=(
        "potstill.evaluation.protocols:MTT",
        "as dsa-1000, at the set's own learning rate: as MTT, TESLA, FTD and HaBa are evaluated",
    ),
    mtt_digits=(
        "potstill.evaluation.protocols:MTT_DIGITS",
        "the same without flip, for digits",
    ),
    idc=(
        "potstill.evaluation.protocols:IDC",
        "as IDC and DREAM are evaluated: 1,000 epochs of SGD, augmented, CutMix, tested once",
    ),
    idc_digits=(
        "potstill.evaluation.protocols:IDC_DIGITS",
        "the same without flip and CutMix, as IDC is evaluated on digits",
    ),
    frepo=(
        "potstill.evaluation.protocols:FREPO",
        "as FRePo is evaluated: squared error, Adam, steps by the set's size, augmented, tested "
        "once",
    ),
    frepo_digits=(
        "potstill.evaluation.protocols:FREPO_DIGITS",
        "the same without flip, for digits",
    ),
    rcig=(
        "potstill.evaluation.protocols:RCIG",
        "as RCIG is evaluated: squared error, Adam, mirrored copies beside, not augmented, tested "
        "once",
    ),
    rcig_augmented=(
        "potstill.evaluation.protocols:RCIG_AUGMENTED",
        "the same augmented",
    ),
    rcig_digits=(
        "potstill.evaluation.protocols:RCIG_DIGITS",
        "rcig without mirrored copies, for digits",
    ),
    rfad=(
        "potstill.evaluation.protocols:RFAD",
        "as RFAD's finite networks are evaluated: less their start, on scaled targets; the length "
        "by validation images",
    ),
    kip=(
        "potstill.evaluation.protocols:KIP",
        "as KIP's finite networks are evaluated: squared error, 5,000 steps of SGD at the largest "
        "stable rate, tested once",
    ),
    dc_300=(
        "potstill.evaluation.protocols:DC_300",
        "as DC is evaluated: 301 epochs of SGD without augmentation, tested once",
    ),
)
LEARNERS = Registry(
    "learner",
    network=(
        "potstill.evaluation.learners:Network",
        "a fresh network trained by the recipe (default)",
    ),
    network_mse=(
        "potstill.evaluation.learners:SquaredNetwork",
        "the same by squared error, on targets less 1 / K",
    ),
    network_centred=(
        "potstill.evaluation.squared_networks:CentredNetwork",
        "such a network less its start, on targets times the recipe's label_scale",
        "Loo et al. 2022",
    ),
    network_stable=(
        "potstill.evaluation.squared_networks:StableNetwork",
        "such a network at the largest stable rate times the recipe's lr",
        "Nguyen, Novak, Xiao & Lee 2021",
    ),
    krr_features=(
        "potstill.evaluation.learners:FeatureRidge",
        "such a network, and ridge regression on what its last layer reads",
        "Zhou, Nezhadarya & Ba 2022",
    ),
    krr_random=(
        "potstill.evaluation.learners:RandomFeatures",
        "ridge regression on features of 8 fresh random networks",
        "Loo et al. 2022",
    ),
    krr=(
        "potstill.evaluation.learners:KernelRidge",
        "kernel ridge regression with the kernel of the set's recipe, of an infinite network",
        "Nguyen, Chen & Lee 2021",
    ),
    linear=(
        "potstill.evaluation.learners:Linear",
        "ridge regression on the networks' inputs, with an intercept",
    ),
    nearest=(
        "potstill.evaluation.learners:Nearest",
        "the nearest example in the networks' input space gives the class; nothing is trained",
    ),
)
KERNELS = Registry(
    "kernel",
    fc=("potstill.engine.kernels:FullyConnected", "dense layers, ReLU between them"),
    convnet=(
        "potstill.engine.kernels:Convolutional",
        "blocks of convolution, ReLU and mean pool, no norm",
    ),
    convnet_prepended=(
        "potstill.engine.kernels:PrependedConvolutional",
        "the same after a convolution and a ReLU without a pool",
    ),
)
EXPORTS = Registry(
    "export format",
    png=(
        "potstill.distilled.exports:PNG",
        "one annotated picture of the images; of more than 50 a class the first 20 (default)",
    ),
    folder=("potstill.distilled.exports:FOLDER", "one PNG an image, in class folders"),
    csv=(
        "potstill.distilled.exports:CSV",
        "of vectors: a line for each, features in the data's own units",
    ),
    parquet=(
        "potstill.distilled.exports:PARQUET",
        "Hugging Face parquet: pictures, labels, and the exact arrays",
    ),
    npz=("potstill.distilled.exports:NPZ", "NumPy arrays"),
    tensors=(
        "potstill.distilled.exports:TENSORS",
        "images.pt and labels.pt, as MTT's code, DD-Ranking and others read them",
    ),
    safetensors=(
        "potstill.distilled.exports:SAFETENSORS",
        "a set's own file, of --ipc images per class, or --without-preprocessing",
    ),
)
PREPROCESSING = Registry(
    "preprocessing",
    none=("potstill.data.preprocessing:Unchanged", "values as they are; pixels in [0, 1]"),
    normalize=(
        "potstill.data.preprocessing:Normalize",
        "per channel, or feature of vectors: mean 0, standard deviation 1 over the train split",
    ),
    zca=(
        "potstill.data.whitening:Zca",
        "each image centred and scaled to norm 1, or each feature of vectors standardised, then "
        "ZCA whitening (regularised)",
    ),
    zca_mtt=(
        "potstill.data.whitening:ZcaOfMtt",
        "the other ZCA whitening of the field, of MTT and its kin: images less their mean",
    ),
    zca_frepo=(
        "potstill.data.whitening:ZcaOfFrepo",
        "the third, of FRePo and RCIG: channels standardised, then images less their mean",
    ),
)
AUGMENTATIONS = Registry(
    "augmentation",
    flip=("potstill.data.augmentation:flip", "mirror left and right with probability 1/2"),
    rotate=("potstill.data.augmentation:rotate", "turn by up to 15 degrees"),
    crop=(
        "potstill.data.augmentation:crop",
        "shift by up to an eighth of each side, zeros from outside",
    ),
    cutout=("potstill.data.augmentation:cutout", "a rectangle of half the sides becomes 0"),
    color=("potstill.data.augmentation:color", "change brightness, saturation and contrast"),
    scale=("potstill.data.augmentation:scale", "stretch or shrink each axis by up to 1.2"),
)
STUDIES = Registry(
    "study",
    subsets=(
        "potstill.studies.boosting:Subsets",
        "what a part of a distilled set is worth, beside random real images",
        "figures 6 and 8",
    ),
    boosting=(
        "potstill.studies.boosting:Boosting",
        "joint, weak and strong boosting at every number of images, beside a set for each",
        "figure 7",
    ),
    pictures=(
        "potstill.studies.pictures:Pictures",
        "picture grids of joint, weak and strong sets",
        "figures 14 to 16",
    ),
    stability=(
        "potstill.studies.stability:Stability",
        "norm, variance and sources of noise of the meta-gradient",
        "figures 3 and 11",
    ),
    windows=(
        "potstill.studies.windows:Windows",
        "accuracy in the course of distillation, by how the window is placed",
        "figures 4 and 5",
    ),
    unroll=(
        "potstill.studies.windows:UnrollLength",
        "how long the unroll may be for a window",
        "figure 10, left",
    ),
    window_size=(
        "potstill.studies.windows:WindowSize",
        "how large the window should be for an unroll",
        "figure 10, right",
    ),
    stabilising=(
        "potstill.studies.windows:Stabilising",
        "whether clipping, unit norm or growing unrolls make up for it",
        "figure 12",
    ),
    inner_optimizer=(
        "potstill.studies.windows:InnerOptimizers",
        "Adam or SGD in the inner loop",
        "appendix D.6",
    ),
    transfer=(
        "potstill.studies.transfer:Transfer",
        "a set for the ConvNet on other networks, beside sets for them",
        "tables 1 and 3",
    ),
    hardness=(
        "potstill.studies.hardness:Hardness",
        "which real images distilled sets serve, and weighing them by hardness",
        "figures 9 and 17",
    ),
    levers=(
        "potstill.studies.levers:Levers",
        "what the same time is worth, spent in different ways",
        "not in the paper",
    ),
    methods=(
        "potstill.studies.methods:Methods",
        "what every method makes of the same time, measured alike",
        "not in the paper",
    ),
    parameterisations=(
        "potstill.studies.parameterisations:Parameterisations",
        "what the same bytes are worth, by how images are stored",
        "table 2",
    ),
)


def trust_given(values: Iterable[Any]) -> None:
    """Trust every part of a user's own among values that the user gave.

    Args:
        values: of options and arguments; texts, sequences of texts, or anything else.
    """
    for value in values:
        if isinstance(value, list | tuple):
            trust_given(value)
        for part in value.split("+") if isinstance(value, str) else ():
            found = PATH.match(part)
            if found and found[0].partition(":")[0] not in SOURCES.rows:
                trust(found[0])
