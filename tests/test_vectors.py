"""Tables of numbers: rows (n, d) through every command, beside closed forms, and refused where they
do not fit.
"""

import csv
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.datasets import load_wine

import potstill
from potstill.cli.parser import main
from potstill.config.config import configuration
from potstill.data import augmentation
from potstill.data.arrays import from_arrays
from potstill.data.preparation import prepare
from potstill.data.preprocessing import Preprocess, auto_preprocessing, restored
from potstill.data.sources import read
from potstill.data.splits import KINDS, require_kind
from potstill.distillation.option_checks import check_kinds
from potstill.distillation.outer import Interrupted
from potstill.distillation.run_folder import RunFolder
from potstill.errors import InputError
from potstill.progress import Listener
from potstill.registry import AUGMENTATIONS, MODELS, PARAMETERISATIONS, PREPROCESSING
from potstill.reports.features import feature_ranges, row_table
from potstill.reports.report import write_report
from potstill.seeds import generator

CPU = torch.device("cpu")
X, Y = load_wine(return_X_y=True)
NAMES = load_wine().feature_names
QUICK = {
    "ipc": 1,
    "steps": 4,
    "unroll": 6,
    "window": 3,
    "real_batch": 30,
    "width": 16,
    "lengths": (20,),
    "validation_nets": 1,
    "validate_every": 2,
    "checkpoint_every": 2,
    "precision": "float32",
    "compile": "off",
}
"""As keywords of `potstill.distill`."""


def flags(**options) -> list[str]:
    """The same as the command line takes them."""
    shown = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in options.items()
    }
    return [
        word for name, value in shown.items() for word in (f"--{name.replace('_', '-')}", value)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A boosted run on wine with learned labels, evaluated, from the command line."""
    folder = tmp_path_factory.mktemp("vectors") / "wine"
    options = flags(**{**QUICK, "ipc": 2}, boost_blocks=2, data="sklearn:wine")
    assert main(["distill", "--out", str(folder), "--quiet", "--learn-labels", *options]) == 0
    assert (
        main(["evaluate", str(folder), "--nets", "2", "--baseline", "random", "--compile", "off"])
        == 0
    )
    return folder


# What is learned


def test_distilled_rows_teach_far_more_than_as_many_random_ones():
    # Two classes that differ in the sum of 20 features, each of which says little, in units that
    # differ by 1e6: a random row of each class gives about 80 %, and so does a set whose features
    # were not scaled.
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 2
    rows = (rng.normal(size=(600, 20)) + 0.45 * (2 * labels[:, None] - 1)) * np.logspace(
        -3, 3, 20
    ) + np.arange(20)
    distilled = potstill.distill(
        rows,
        labels,
        ipc=1,
        steps=60,
        unroll=30,
        window=15,
        inner_lr=0.01,
        width=32,
        lengths=(30,),
        validate_every=20,
        precision="float32",
        compile="off",
        threads=1,
    )
    own, random = potstill.evaluate(
        distilled, rows, labels, nets=5, baselines=("random",), compile="off"
    )
    assert distilled.recipe.model == "mlp"
    # Bayes: 97.8 %; an unmoved set of real rows: 88 %, of noise: 50 %.
    assert own.accuracy.mean > 0.9
    assert random.accuracy.mean < 0.9


# Data


def test_rows_of_whole_numbers_are_taken_as_they_are_and_not_as_pixels():
    whole = np.random.default_rng(0).integers(-500, 9000, (30, 5))
    dataset = from_arrays(whole, np.arange(30) % 2)
    assert (dataset.kind, dataset.shape) == ("vector", (5,))
    np.testing.assert_array_equal(
        dataset.train.floats(np.arange(30)).numpy(), whole.astype(np.float32)
    )
    assert from_arrays(whole % 256, np.arange(30) % 2).fingerprint != dataset.fingerprint
    # One-hot columns are often bool.
    assert from_arrays(whole[:, :4] > 0, np.arange(30) % 2).train.images.dtype == np.float32


class Frame:
    """What a data frame shows of itself."""

    def __init__(self, values, columns):
        self.values, self.columns = values, columns

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


def test_feature_names_are_those_given_or_of_a_data_frame():
    labels = np.arange(30) % 2
    rows = np.random.default_rng(0).normal(size=(30, 2))
    assert from_arrays(Frame(rows, ["a", 1]), labels).feature_names == ("a", "1")
    assert from_arrays(Frame(rows, ["a", 1]), labels, feature_names=["x", "y"]).feature_names == (
        "x",
        "y",
    )
    assert from_arrays(rows, labels).feature_names == ()
    for given, message in (
        (
            ["x"],
            r"feature_names must be different names, one for each of the 2 features, got \['x'\]",
        ),
        (["x", "x"], r"one for each of the 2 features, got \['x', 'x'\]"),
        ("xy", "one for each of the 2 features, got 'xy'"),
    ):
        with pytest.raises(InputError, match=message):
            from_arrays(rows, labels, feature_names=given)
    with pytest.raises(InputError, match="features of images, which have none"):
        from_arrays(np.ones((30, 4, 4)), labels, feature_names=["x"] * 4)
    with pytest.raises(
        InputError, match="test_images must have the columns of images, in their order"
    ):
        from_arrays(Frame(rows, ["a", "b"]), labels, Frame(rows, ["b", "a"]), labels)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            np.where(np.arange(60).reshape(30, 2) == 7, np.nan, 1.0),
            "features must be finite numbers, train row 3 holds NaN",
        ),
        (
            np.full((30, 2), 1e300),
            "features must be finite numbers, train row 0 holds NaN or infinity",
        ),
        (
            np.full((30, 2), "red"),
            r"images of shape \(30, 2\) must be numbers, got values of type <U3; encode what is "
            r"text",
        ),
    ],
)
def test_a_table_that_holds_no_numbers_is_refused(rows, message):
    with pytest.raises(InputError, match=message):
        from_arrays(rows, np.arange(30) % 2)


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [("wine", (13,), 3), ("breast_cancer", (30,), 2), ("digits", (64,), 10)],
)
def test_tables_of_scikit_learn_are_found_by_name(name, shape, classes):
    dataset = read(configuration(data=f"sklearn:{name}").data)
    assert (dataset.shape, len(dataset.class_names), len(dataset.feature_names)) == (
        shape,
        classes,
        shape[0],
    )


# Preprocessing


def table(count: int = 400) -> torch.Tensor:
    """Correlated features in very different units; the last is constant."""
    mixed = torch.randn(count, 5, generator=generator(0), dtype=torch.float64)
    mixed[:, 1] += 0.9 * mixed[:, 0]
    mixed[:, 4] = 0
    units = torch.tensor([1e-7, 1.0, 30.0, 1e4, 1.0], dtype=torch.float64)
    return (mixed * units + torch.tensor([5e-7, -3.0, 0.0, 1e5, 8.0])).float()


def fit(name: str, rows: torch.Tensor, pieces: int = 3, **options) -> Preprocess:
    chosen = PREPROCESSING[name]
    return chosen.fit(lambda: rows.tensor_split(pieces), chosen.Options(**options))


def test_normalize_is_per_feature_whatever_its_units():
    rows = table()
    seen = fit("normalize", rows)(rows).double()
    # 1e-3: the fourth feature is 1e5 +- 1e4 in float32, and the first 5e-7.
    torch.testing.assert_close(seen.mean(0), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-3)
    expected = torch.tensor([1, 1, 1, 1, 0], dtype=torch.float64)
    torch.testing.assert_close(seen.square().mean(0), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("regularization", [0.1, 1e-6])
def test_zca_of_vectors_is_its_formula_in_numpy(regularization):
    rows = table()
    given = rows.double().numpy()
    std = given.std(0)
    standard = (given - given.mean(0)) / np.where(std > 0, std, 1)
    values, vectors = np.linalg.eigh(standard.T @ standard / len(rows))
    whitening = vectors @ np.diag(1 / np.sqrt(values + regularization * values.mean())) @ vectors.T
    seen = fit("zca", rows, zca_regularization=regularization)(rows).numpy()
    # 2e-3: float32 rows of 1e5 +- 1e4; the constant feature, scaled by up to 1e3 at the small
    # regularisation, is left out.
    np.testing.assert_allclose(seen[:, :4], (standard @ whitening)[:, :4], rtol=0, atol=2e-3)
    if regularization < 0.01:
        np.testing.assert_allclose(seen[:, :4].T @ seen[:, :4] / len(rows), np.eye(4), atol=5e-3)


def test_zca_of_vectors_does_not_depend_on_units():
    rows = table()[:, :4]
    other = rows * torch.tensor([1e6, 2.0, 0.5, 1e-3]) + 1
    torch.testing.assert_close(fit("zca", other)(other), fit("zca", rows)(rows), rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", ["none", "normalize", "zca"])
def test_the_way_back_is_exact_and_the_state_restores_everything(name):
    rows = table()
    fitted = fit(name, rows)
    back = fitted.inverse(fitted(rows))
    assert ((back - rows).abs() <= 1e-5 * rows.abs().amax(0)).all()
    again = restored(name, fitted.state())
    assert torch.equal(again(rows), fitted(rows))
    low, mean, high = again.tensors["ranges"]
    assert torch.equal(torch.stack((low, high)), torch.stack((rows.amin(0), rows.amax(0))))
    torch.testing.assert_close(mean, rows.double().mean(0).float())


def test_auto_normalizes_vectors_of_any_size_and_zca_of_constants_is_refused():
    assert auto_preprocessing((13,)) == "normalize"
    with pytest.raises(
        InputError,
        match="zca needs a feature that is not constant, found none; give --preprocess none",
    ):
        fit("zca", torch.ones(10, 3))


# Parts and kinds


def parts_of(registry) -> dict[str, bool]:
    """Name -> whether it takes vectors."""
    return {name: "vector" in getattr(registry[name], "kinds", KINDS) for name in registry}


def test_parts_say_what_they_take():
    assert [name for name, takes in parts_of(MODELS).items() if takes] == ["mlp"]
    assert [name for name, takes in parts_of(PARAMETERISATIONS).items() if takes] == ["pixels"]
    vectors = [name for name, takes in parts_of(PREPROCESSING).items() if takes]
    assert vectors == [name for name in PREPROCESSING if not name.startswith("zca-")]
    assert not any(parts_of(AUGMENTATIONS).values())
    # A stranger's part that says nothing may take anything.
    require_kind("vector", "model own", object(), "")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"model": "convnet"}, "model convnet takes images, the data are vectors; use --model mlp"),
        (
            {"model": "resnet18"},
            "model resnet18 takes images, the data are vectors; use --model mlp",
        ),
        (
            {"param": "basis"},
            "parameterisation basis takes images, the data are vectors; use --param pixels",
        ),
        (
            {"augment": "flip"},
            "augmentation flip takes images, the data are vectors; use --augment none",
        ),
        ({"data": "sklearn:wines"}, "got 'sklearn:wines' (did you mean 'sklearn:wine'?)"),
        (
            {"zca_regularization": 0.3},
            "zca_regularization has no effect with --preprocess normalize; it belongs to zca, "
            "zca-frepo: choose another --preprocess, or leave it out",
        ),
        (
            {"norm": "batch"},
            "norm has no effect with --model mlp; it belongs to convnet",
        ),
        ({"preprocess": "whiten"}, "unknown preprocessing 'whiten'; known: none, normalize, zca"),
    ],
)
def test_a_wrong_pair_is_one_sentence_before_anything_is_fitted(
    options, sentence, tmp_path, capsys, monkeypatch
):
    def never(*_):
        raise AssertionError("the data were prepared first")

    monkeypatch.setattr("potstill.distillation.setup.prepare", never)
    words = ["distill", "--out", str(tmp_path / "r"), *flags(**{"data": "sklearn:wine", **options})]
    assert main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("potstill: error: ")
    assert sentence in error
    assert not (tmp_path / "r").exists()


def test_a_strangers_operation_may_take_vectors(tmp_path, monkeypatch):
    potstill.trust("noises")
    (tmp_path / "noises.py").write_text(
        "def jitter(rows, values):\n    return rows + 0.1 * (values[:, :1] - 0.5)\n\n\n"
        "def short(rows, values):\n    return rows[:1]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    distilled = potstill.distill(X, Y, **QUICK, augment=("noises:jitter",))
    assert distilled.recipe.augment == ("noises:jitter",)
    assert augmentation.apply(
        distilled.images, augmentation.draw(("noises:jitter",), 3, generator(0))
    ).shape == (3, 13)
    with pytest.raises(
        InputError,
        match=r"noises:short must return a tensor of the batch's shape \(2, 13\), got \(1, 13\)",
    ):
        check_kinds(configuration(augment=("noises:short",)), (13,), "mlp")


def test_a_users_own_preprocessing_and_network_take_vectors_and_are_found_again(
    tmp_path, monkeypatch
):
    (tmp_path / "logs.py").write_text(
        "from dataclasses import dataclass\nimport torch\n"
        "from potstill.config.options import option\n"
        "from potstill.data.preprocessing import Preprocess\n\n\n"
        "class Log(Preprocess):\n"
        "    @dataclass(frozen=True)\n    class Options:\n"
        "        shift: float = option(1.0, 'added before the logarithm', low=0)\n\n"
        "    @classmethod\n    def solve(cls, means, options):\n"
        "        return {'shift': torch.tensor(options.shift)}\n\n"
        "    def __call__(self, rows):\n        return (rows + self.tensors['shift']).log()\n\n"
        "    def inverse(self, rows):\n        return rows.exp() - self.tensors['shift']\n\n\n"
        "def net(in_features, num_classes):\n    return torch.nn.Linear(in_features, num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = {name: value for name, value in QUICK.items() if name not in ("width", "depth")}
    distilled = potstill.distill(
        X, Y, **own, model="logs:net", preprocess="logs:Log", shift=2.0, out=tmp_path / "r"
    )
    again = potstill.load(tmp_path / "r")
    assert again.fitted.name == "logs:Log"
    torch.testing.assert_close(again.preprocess(X), (torch.as_tensor(X).float() + 2).log())
    torch.testing.assert_close(again.rows, distilled.images.exp() - 2)
    assert again.meta["config"]["preprocessing"] == {"preprocess": "logs:Log", "shift": 2.0}
    with pytest.raises(InputError, match=r"shift must be at least 0, got -1"):
        potstill.distill(X, Y, **own, model="logs:net", preprocess="logs:Log", shift=-1)
    assert potstill.train(again, steps=2).in_features == 13
    with pytest.raises(
        InputError,
        match=r"preprocessing logs:net must be a subclass of "
        r"potstill.data.preprocessing.Preprocess, got <function",
    ):
        potstill.distill(X, Y, **QUICK, preprocess="logs:net")


# A run and its files


def test_a_file_is_read_back_whole_and_its_prefix_is_a_set(run):
    distilled = potstill.load(run)
    assert (distilled.kind, distilled.shape, len(distilled), distilled.budgets) == (
        "vector",
        (13,),
        6,
        (1, 2),
    )
    assert distilled.feature_names == tuple(NAMES)
    assert distilled.meta["config"]["data"]["data"] == "sklearn:wine"
    assert distilled.targets.shape == (6, 3)
    torch.testing.assert_close(
        distilled.preprocess(distilled.rows), distilled.images, rtol=0, atol=1e-4
    )
    assert torch.equal(distilled.prefix(1).images, distilled.blocks[0].images)
    assert potstill.train(distilled, steps=3)(distilled.preprocess(X[:4])).shape == (4, 3)
    assert distilled.preprocess(X[0]).shape == (1, 13)
    assert distilled.preprocess(Frame(X[:4], NAMES)).shape == (4, 13)
    with pytest.raises(InputError, match=r"real rows must have shape \(N, 13\), got \(4, 12\)"):
        distilled.preprocess(X[:4, 1:])
    with pytest.raises(
        InputError, match=r"real rows must have the columns alcohol, malic_acid, .* got proline, "
    ):
        distilled.preprocess(Frame(X[:4], NAMES[::-1]))
    with pytest.raises(
        InputError, match=r"real rows of shape \(1, 13\) must be numbers, got values of type <U1"
    ):
        distilled.preprocess([["a"] * 13])
    frozen = X[:4].copy()
    frozen.flags.writeable = False  # as a data frame's array may be
    assert distilled.preprocess(frozen).shape == (4, 13)
    with pytest.raises(InputError, match="a picture shows an image, this set holds vectors"):
        _ = distilled.pixels


def test_the_run_leaves_a_table_and_no_picture(run):
    assert (run / "distilled.csv").is_file()
    assert not (run / "distilled.png").exists()
    lines = list(csv.reader((run / "distilled.csv").read_text().splitlines()))
    distilled = potstill.load(run)
    assert lines[0] == ["label", *NAMES, *(f"weight of {name}" for name in distilled.class_names)]
    assert [line[0] for line in lines[1:]] == [
        distilled.class_names[label] for label in distilled.labels
    ]
    values = np.array([line[1:] for line in lines[1:]]).astype(np.float32)
    np.testing.assert_array_equal(values[:, :13], distilled.rows.numpy())
    np.testing.assert_array_equal(values[:, 13:], distilled.targets.numpy())


def test_exports_hold_the_exact_arrays_and_refuse_pictures(run, tmp_path):
    distilled = potstill.load(run)
    potstill.export(distilled, "npz", tmp_path / "s.npz")
    arrays = np.load(tmp_path / "s.npz")
    np.testing.assert_array_equal(arrays["images"], distilled.images)
    np.testing.assert_array_equal(arrays["rows"], distilled.rows)
    assert arrays["feature_names"].tolist() == NAMES
    potstill.export(distilled, "parquet", tmp_path / "s.parquet")
    columns = pq.read_table(tmp_path / "s.parquet")
    np.testing.assert_array_equal(
        np.array(columns["input"].to_pylist(), np.float32), distilled.images
    )
    np.testing.assert_array_equal(
        np.array(columns["target"].to_pylist(), np.float32), distilled.targets
    )
    for format in ("png", "folder"):
        message = (
            f"format {format} takes images, the data are vectors; use --format csv, parquet or npz"
        )
        with pytest.raises(InputError, match=message):
            potstill.export(distilled, format, tmp_path / "s.x")
        assert not (tmp_path / "s.x").exists()
    digits = potstill.distill(data="digits", **QUICK, model="mlp")
    with pytest.raises(
        InputError,
        match="format csv takes vectors, the data are images; use --format png, parquet or npz",
    ):
        potstill.export(digits, "csv", tmp_path / "s.csv")


def test_other_data_and_other_networks_are_refused_by_evaluate(run, capsys):
    for words, sentence in (
        (
            ("--data", "sklearn:iris"),
            "must have 13 features like the distilled set, got 4 features",
        ),
        (
            ("--data", "digits"),
            "must have 13 features like the distilled set, got images of shape (1, 8, 8)",
        ),
        (("--model", "vgg11"), "model vgg11 takes images, the data are vectors; use --model mlp"),
    ):
        assert main(["evaluate", str(run), *words]) == 2
        assert sentence in capsys.readouterr().err
    others = [f"other {name}" for name in NAMES]
    dataset = from_arrays(X, Y, class_names=["class_0", "class_1", "class_2"], feature_names=others)
    with pytest.raises(
        InputError, match=r"the first that differs is 'other alcohol' in place of 'alcohol'"
    ):
        potstill.evaluation.fitting.fitting(
            potstill.load(run), dataset, configuration().data, "cpu"
        )


def test_a_set_alone_finds_the_tables_that_scikit_learn_carries(run, tmp_path, capsys):
    shutil.copy(run / "distilled.safetensors", tmp_path / "set.safetensors")
    assert (
        main(["evaluate", str(tmp_path / "set.safetensors"), "--nets", "1", "--compile", "off"])
        == 0
    )
    assert "Test accuracy on 36 rows" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path):
    options = {**QUICK, "learn_labels": True, "feature_names": NAMES}
    potstill.distill(X, Y, **options, out=tmp_path / "whole")
    seen: list[int] = []
    listener = Listener(
        step=lambda record, steps: seen.append(record.step), stop=lambda: len(seen) >= 3
    )
    with pytest.raises(Interrupted):
        potstill.distill(X, Y, **options, out=tmp_path / "cut", listener=listener)
    distilled = RunFolder(tmp_path / "cut").snapshot()
    assert (distilled.kind, distilled.feature_names) == ("vector", tuple(NAMES))
    potstill.resume(tmp_path / "cut", X, Y, feature_names=NAMES)
    whole, cut = (
        (tmp_path / name / "distilled.safetensors").read_bytes() for name in ("whole", "cut")
    )
    assert whole == cut


# The report


def test_the_report_shows_the_rows_and_the_ranges_of_their_features(run, tmp_path):
    write_report([run], tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    words = re.sub(r"<[^>]+>", " ", text)
    assert "127 rows of wine became 6" in words
    told = re.sub(
        r"<[^>]+>", " ", re.sub(r"<style>.*?</style>|<pre>.*?</pre>", "", text, flags=re.DOTALL)
    )
    assert not re.search(r"\b[Ii]mages?\b", told)
    assert "<img" not in text
    distilled = potstill.load(run)
    for value in (distilled.rows[0, 0], distilled.rows[5, 12]):
        assert f">{float(value):.4g}<" in text
    config = RunFolder(run).config()
    real = prepare(read(config.data), config.data, CPU, distilled.fitted)
    train = distilled.fitted.inverse(real.train.images)
    assert f"{float(train[:, 0].min()):.4g} to {float(train[:, 0].max()):.4g}" in words
    assert (
        f"{float(distilled.rows[:, 0].min()):.4g} to {float(distilled.rows[:, 0].max()):.4g}"
        in words
    )
    assert f"potstill export {run.name} --format csv" in words


def test_a_table_on_a_page_is_cut_to_what_it_can_hold(run):
    distilled = potstill.load(run)
    shown = row_table(distilled, most_features=2, most_rows=3)
    assert (shown.features, [row.title for row in shown.rows]) == (
        NAMES[:2],
        list(distilled.class_names),
    )
    assert (
        shown.left_out
        == "Shown: the first 2 of 13 features and the first 1 of 2 rows of each class; the CSV "
        "file has all."
    )
    ranges = feature_ranges(distilled, most=5)
    assert ranges.left_out == "Shown: the first 5 of 13 features."
    for feature in ranges.features:
        assert all(
            start >= 0 and start + width <= 100 + 1e-6
            for start, width in (feature.real_bar, feature.distilled_bar)
        )
