"""The command line as a new user meets it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_runs import QUICK, flags

import potstill
from potstill.cli import early
from potstill.cli.parser import main
from potstill.config.config import DataConfig, options_of_run
from potstill.config.slots import SLOTS
from potstill.data import sources
from potstill.distillation import checkpoints, run_folder
from potstill.distilled import artefact
from potstill.distilled.exports import folder_names
from potstill.evaluation import measuring
from potstill.evaluation.records import EVALUATION, EvaluationRecord, entries
from potstill.records.metrics import Figure
from potstill.registry import METHODS, MODELS, SOURCES

KEY = EvaluationRecord.KEY


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert main(["distill", "--out", str(out), *flags(), "--quiet"]) == 0
    return out


def told(capsys, *words: object) -> str:
    """The one sentence of a command that must fail with exit code 2."""
    assert main(list(map(str, words))) == 2
    errors = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("potstill: error: ")
    ]
    assert len(errors) == 1
    return errors[0].removeprefix("potstill: error: ")


def photos(root: Path, sizes: list[tuple[int, int]], *, classes: int = 2, count: int = 8) -> Path:
    """Class folders of random images, in turn of these (width, height)."""
    rng = np.random.default_rng(0)
    for label in range(classes):
        for index in range(count):
            width, height = sizes[index % len(sizes)]
            path = root / f"class{label}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return root


def test_distill_says_where_everything_is(tmp_path, capsys):
    assert main(["distill", "--out", str(tmp_path / "r"), *flags(steps=2)]) == 0
    output = capsys.readouterr()
    for name in ("distilled.safetensors", "distilled.png"):
        assert str(tmp_path / "r" / name) in output.out
    assert "% (n = 2) after " in output.out
    assert "these images chose the set and the steps, so this is no test result" in output.out
    assert "10 classes (0, 1, 2, 3, 4, 5, ...), images" in output.err
    assert f"potstill evaluate {tmp_path / 'r'}" in output.out
    assert "359 test (20 % of all, by class)" in output.err


def test_evaluate_prints_a_table_and_writes_the_same(run, capsys):
    words = [
        "evaluate",
        run,
        "--nets",
        3,
        "--baseline",
        "random",
        "--baseline",
        "full",
        "--full-epochs",
        2,
    ]
    assert main(list(map(str, words))) == 0
    output = capsys.readouterr().out
    written = entries(run / EVALUATION, KEY)[-1]
    assert [row["name"] for row in written["rows"]] == ["distilled", "random", "full"]
    for row in written["rows"]:
        assert set(row["accuracy"]) == {"mean", "std", "n"}
        assert 0 <= row["accuracy"]["mean"] <= 1
        assert row["accuracy"]["n"] == 3
        assert (
            f"{100 * row['accuracy']['mean']:.1f} ± {100 * row['accuracy']['std']:.1f} % (n = 3)"
            in output
        )
    assert "± is the standard deviation over networks, not over distilling runs.\n" in output
    assert written["test_images"] == 359
    assert {"hardware", "versions", "settings", "data"} <= set(written)


def test_one_network_has_no_spread_to_explain(run, capsys):
    assert main(["evaluate", str(run), "--nets", "1"]) == 0
    assert "±" not in capsys.readouterr().out


def test_evaluating_twice_gives_the_same(run):
    results = []
    for _ in range(2):
        assert main(["evaluate", str(run), "--nets", "2"]) == 0
        results.append((run / EVALUATION).read_text())
    assert results[0] == results[1]


def test_a_file_alone_is_enough_to_evaluate_the_embedded_digits(run, tmp_path):
    alone = tmp_path / "mine.safetensors"
    alone.write_bytes((run / artefact.ARTEFACT).read_bytes())
    assert main(["evaluate", str(alone), "--nets", "2", "--seed", "5"]) == 0
    main(["evaluate", str(run), "--nets", "2", "--seed", "5"])
    assert entries(tmp_path / "mine.evaluation.json", KEY) == entries(run / EVALUATION, KEY)[-1:]


def test_evaluations_of_a_run_stand_beside_each_other(run):
    main(["evaluate", str(run), "--nets", "1", "--seed", "8"])
    before = entries(run / EVALUATION, KEY)
    main(["evaluate", str(run), "--nets", "1", "--seed", "9", "--model", "convnet", "--steps", "3"])
    after = entries(run / EVALUATION, KEY)
    assert after[:-1] == before
    assert after[-1]["rows"][0]["model"] == "convnet"


def test_another_model_and_fixed_steps(run):
    assert (
        main(
            [
                "evaluate",
                str(run),
                "--nets",
                "1",
                "--model",
                "test_models:with_shape",
                "--steps",
                "7",
            ]
        )
        == 0
    )
    (row,) = entries(run / EVALUATION, KEY)[-1]["rows"]
    assert (row["model"], row["steps"], row["accuracy"]["std"]) == (
        "test_models:with_shape",
        7,
        None,
    )


def test_a_users_model_is_found_where_the_user_stands(tmp_path, monkeypatch, capsys):
    (tmp_path / "mynets.py").write_text(
        "from torch import nn\n\n\ndef net(num_classes):\n    return nn.Sequential(nn.Flatten(), "
        "nn.Linear(64, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    options = flags(without=("width", "depth"), model="mynets:net", steps=2)
    assert main(["distill", "--out", "r", *options]) == 0
    assert main(["evaluate", "r", "--nets", "1"]) == 0
    assert potstill.load("r").recipe.model == "mynets:net"


def test_photos_of_several_sizes_need_a_size_and_then_work(tmp_path, capsys):
    data = f"folder:{photos(tmp_path / 'photos', [(40, 30), (25, 60), (32, 32)])}"
    options = flags(steps=2, ipc=1, data=data, classes_per_batch="auto", cache_dir=tmp_path)
    sentence = told(capsys, "distill", "--out", tmp_path / "r", *options)
    assert "3 sizes" in sentence
    assert "--image-size" in sentence
    assert not (tmp_path / "r").exists()
    assert main(["distill", "--out", str(tmp_path / "r"), *options, "--image-size", "16"]) == 0
    assert "resized and centre-cropped to 16 x 16" in capsys.readouterr().err
    assert potstill.load(tmp_path / "r").shape == (3, 16, 16)
    assert main(["evaluate", str(tmp_path / "r"), "--nets", "1"]) == 0


def test_a_file_of_other_data_asks_for_them(tmp_path, capsys):
    data = f"folder:{photos(tmp_path / 'photos', [(16, 16)])}"
    options = flags(steps=1, ipc=1, data=data, classes_per_batch="auto", cache_dir=tmp_path)
    assert main(["distill", "--out", str(tmp_path / "r"), *options]) == 0
    alone = tmp_path / "alone" / "set.safetensors"
    alone.parent.mkdir()
    alone.write_bytes((tmp_path / "r" / artefact.ARTEFACT).read_bytes())
    assert "does not tell where its data lie; give them with --data" in told(
        capsys, "evaluate", alone
    )
    assert (
        main(["evaluate", str(alone), "--nets", "1", "--data", data, "--cache-dir", str(tmp_path)])
        == 0
    )
    capsys.readouterr()
    assert "must have images of shape (3, 16, 16) like the distilled set, got (1, 8, 8)" in told(
        capsys, "evaluate", alone, "--data", "digits"
    )
    more = f"folder:{photos(tmp_path / 'more', [(16, 16)], classes=3)}"
    assert (
        "the 2 classes of the distilled set, class0, class1; got 3, with class2; give data of the "
        "same classes" in told(capsys, "evaluate", alone, "--data", more)
    )
    other = f"folder:{photos(tmp_path / 'other', [(16, 16)], count=9)}"
    assert (
        main(["evaluate", str(alone), "--nets", "1", "--data", other, "--cache-dir", str(tmp_path)])
        == 0
    )
    assert "these are not the data that the set was distilled from" in capsys.readouterr().err


def test_list_names_everything_that_is_registered(capsys):
    assert main(["list"]) == 0
    output = capsys.readouterr().out
    for registry in (SOURCES, METHODS, MODELS):
        for name, line in registry.described():
            assert f"  {name}" in output
            assert line in output
    assert "potstill distill --preset cifar10-ipc10" in output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["distill", "--ipcc", "3"],
            "unknown argument '--ipcc' (did you mean '--ipc'?); see `potstill distill --help`",
        ),
        (["distill", "--ipc", "0"], "ipc must be at least 1, got 0"),
        (["distill", "--ipc", "two"], "ipc must be a whole number, got 'two'"),
        (
            ["distill", "--window", "99"],
            "window must lie in [1, unroll=60], got 99; lower --window or raise --unroll",
        ),
        (["distill", "--method", "ratbptt"], "unknown method 'ratbptt' (did you mean 'rat-bptt'?)"),
        (["distill", "--model", "conv"], "unknown model 'conv' (did you mean 'convnet'?)"),
        (
            ["distill", "--data", "/no/such"],
            "data /no/such does not exist; check the path",
        ),
        (["distill", "--threads", "99999999"], "threads must be at least 1 and at most 4096"),
        (["distill", "--data", "digit"], "unknown data source 'digit' (did you mean 'digits'?)"),
        (["distill", "--data", "folder:/no/such"], "folder /no/such does not exist"),
        (
            ["distill", "--data", "parquet:/no/such"],
            "parquet /no/such does not exist; give the path with --data parquet:PATH",
        ),
        (["distill", "--preset", "cifar10"], "unknown preset 'cifar10' (did you mean 'cifar10-ipc"),
        (["distill", "--config", "/no/such.toml"], "cannot read the configuration /no/such.toml"),
        (["distill", "--resume", "/no/such"], "/no/such holds no run of potstill"),
        (
            ["distill", "--resume", "/no/such", "--unroll", "3"],
            "--resume takes every option from the run's config.toml; remove --unroll",
        ),
        (
            ["distill", "--ipc", "200"],
            "ipc must be at most the smallest class's number of train images",
        ),
        (["distill", "--depth", "3"], "depth must be at most 2 for images of 8 x 8 pixels"),
        (
            ["distill", "--classes-per-batch", "11"],
            "classes_per_batch must be at most the number of classes, 10, got 11",
        ),
        (
            ["distill", "--device", "cuda:7"],
            "device cuda:7 is not available here; use --device auto",
        ),
        (["distill", "--out", "/proc/nowhere"], "cannot make the run folder /proc/nowhere"),
        (
            ["evaluate"],
            "the following arguments are required: RUN_OR_FILE; see `potstill evaluate --help`",
        ),
        (["evaluate", "/no/such"], "there is no file /no/such"),
        (["evaluate", "x", "--nets", "0"], "nets must be at least 1, got 0"),
        (
            ["evaluate", "x", "--protocol", "test"],
            "unknown protocol 'test'; known: dc-300, dsa-1000",
        ),
        (["export", "x", "--format", "gif"], "argument --format: invalid choice: 'gif'"),
        (["distil"], "argument COMMAND: invalid choice: 'distil'"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_bad_input_gets_one_sentence_and_exit_code_2(
    words, sentence, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert sentence in told(capsys, *words)
    assert list(tmp_path.iterdir()) == []


EARLY = [
    (["distill", "--no-such-option"], "unknown argument '--no-such-option'"),
    (["distill", "--ipcc", "3"], "unknown argument '--ipcc' (did you mean '--ipc'?)"),
    (["distill", "--windw", "3"], "unknown argument '--windw' (did you mean '--window'?)"),
    (["distill", "--method", "nosuch"], "unknown method 'nosuch'"),
    (["distill", "--inner-optimizer", "nosuch"], "unknown optimizer 'nosuch'"),
    (["distill", "--ipc", "two"], "ipc must be a whole number, got 'two'"),
    (["distill", "--outer-lr=-1"], "outer_lr must be above 0, got -1.0"),
    (["distill", "--preset", "nosuch"], "unknown preset 'nosuch'"),
    (["distill", "--config", "/no/such"], "cannot read the configuration /no/such"),
    (["distill", "--resume", "/no/such"], "/no/such holds no run of potstill"),
    (["distill", "--data", "nosuch"], "unknown data source 'nosuch'"),
    (["distill", "--data", "folder:/no/such"], "folder /no/such does not exist"),
    (["evaluate", "/no/such"], "there is no file /no/such"),
    (["evaluate", "/no/such", "--protocol", "nosuch"], "unknown protocol 'nosuch'"),
    (["evaluate", "/no/such", "--threads", "0"], "threads must be at least 1"),
    (["export", "/no/such"], "there is no file /no/such"),
    (["report", "/no/such"], "/no/such holds no run of potstill"),
    (["finish", "/no/such"], "/no/such holds no run of potstill"),
    (["diagnose", "/no/such"], "/no/such holds no run of potstill"),
    (["study", "nosuch"], "unknown study 'nosuch'"),
    (["study", "windows", "--data", "npz:/no/such"], "npz /no/such does not exist"),
]
SCRIPT = """
import json, sys
from potstill.cli.parser import main
for words in json.loads(sys.argv[1]):
    code = main(words)
    print(code, "torch" in sys.modules or "numpy" in sys.modules, flush=True)
"""


def test_mistakes_that_need_no_torch_are_told_without_it():
    commands = json.dumps([words for words, _ in EARLY])
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, commands], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == ["2 False"] * len(EARLY)
    for (words, sentence), line in zip(EARLY, result.stderr.splitlines(), strict=True):
        assert line.startswith(f"potstill: error: {sentence}"), words


def test_what_is_told_early_is_what_the_code_itself_says(tmp_path):
    for early_check, own_check in (
        (lambda: early.check_run(tmp_path), lambda: run_folder.RunFolder.open(tmp_path)),
        (
            lambda: early.check_data("parquet:/no/such"),
            lambda: sources.read(DataConfig("parquet:/no/such")),
        ),
        (lambda: early.check_set(tmp_path / "x"), lambda: artefact.load(tmp_path / "x")),
    ):
        told = []
        for check in (early_check, own_check):
            with pytest.raises(potstill.InputError) as error:
                check()
            told.append(str(error.value))
        assert told[0] == told[1]


def test_every_option_is_known_early():
    names = early.names_of_options()
    for slot in SLOTS:
        for part in slot.registry:
            assert {name for name, *_ in slot.options(part)} <= names, part
    given = [{"method": method} for method in METHODS]
    assert all(option.name in names for one in given for option in options_of_run(one))


def test_an_own_part_may_have_options_of_any_name(capsys):
    words = ["distill", "--method", "test_contract:Missing", "--what-only-it-has", "3"]
    assert "test_contract" in told(capsys, *words)


def test_a_run_that_is_not_finished_does_not_evaluate(run, tmp_path, capsys):
    half = tmp_path / "half"
    half.mkdir()
    (half / checkpoints.CONFIG).write_bytes((run / checkpoints.CONFIG).read_bytes())
    sentence = told(capsys, "evaluate", half)
    assert (
        sentence
        == f"the run in {half} is not finished; go on with `potstill distill --resume {half}`"
    )


def test_a_damaged_set_is_told(run, tmp_path, capsys):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((run / artefact.ARTEFACT).read_bytes()[:-1])
    assert "damaged" in told(capsys, "evaluate", broken)
    assert "damaged" in told(capsys, "export", broken)


def exported(run: Path, format: str, out: Path, capsys, *more: str) -> str:
    assert main(["export", str(run), "--format", format, "--out", str(out), *more]) == 0
    return capsys.readouterr().out


def test_export_of_a_folder_is_a_data_set_again_and_tells_its_cost(run, tmp_path, capsys):
    output = exported(run, "folder", tmp_path / "images", capsys)
    assert "8-bit pixels" in output
    assert output.count("% (n = 3)") == 2  # networks on the set, networks on the pictures
    distilled = potstill.load(run)
    files = sorted((tmp_path / "images").rglob("*.png"))
    assert len(files) == 20
    for index, path in enumerate(sorted(files, key=lambda path: path.name)):
        assert path.parent.name == distilled.class_names[distilled.labels[index]]
        found = np.asarray(Image.open(path)) / 255
        np.testing.assert_allclose(found, distilled.pixels[index, 0], atol=0.5 / 255 + 1e-6)
    assert "exists; choose another place" in told(
        capsys, "export", run, "--format", "folder", "--out", tmp_path / "images"
    )


def test_export_never_replaces_a_file_that_the_user_names(run, tmp_path, capsys):
    mine = tmp_path / "mine.txt"
    mine.write_text("precious")
    for out in (mine, run / artefact.ARTEFACT):
        before = out.read_bytes()
        assert "exists; choose another place" in told(
            capsys, "export", run, "--format", "npz", "--out", out
        )
        assert out.read_bytes() == before
    for _ in range(2):  # beside the set, the export's own file is its own to replace
        assert main(["export", str(run), "--format", "npz"]) == 0
    assert main(["export", str(run), "--out", str(tmp_path / "by_suffix.npz")]) == 0
    assert "images" in np.load(tmp_path / "by_suffix.npz")
    assert "exists" in told(capsys, "export", run, "--format", "png", "--out", ".")


def test_classes_whose_folders_would_meet_get_folders_of_their_own():
    names = folder_names(("a/b", "a_b", "A", "a", "..", "", "con", "plain", "x" * 300))
    assert len({name.casefold() for name in names}) == len(names)
    assert names[7] == "plain"
    assert all(
        name and len(name) < 256 and not set(name) & set('/\\:*?"<>|') and name not in (".", "..")
        for name in names
    )
    assert names[6].casefold() != "con"


def test_export_of_parquet_loads_as_a_hugging_face_data_set_and_is_exact(run, tmp_path, capsys):
    output = exported(run, "parquet", tmp_path / "set.parquet", capsys)
    assert "exact" in output
    table, distilled = pq.read_table(tmp_path / "set.parquet"), potstill.load(run)
    assert torch.equal(
        torch.tensor(table["input"].to_pylist()).view_as(distilled.images), distilled.images
    )
    assert torch.equal(torch.tensor(table["target"].to_pylist()), distilled.targets)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["label"]["names"] == list(distilled.class_names)
    assert table.schema.field("image").type == pa.struct(
        [("bytes", pa.binary()), ("path", pa.string())]
    )
    import datasets

    loaded = datasets.Dataset.from_parquet(str(tmp_path / "set.parquet"), cache_dir=str(tmp_path))
    assert loaded[3]["image"].size == (8, 8)
    assert loaded.features["label"].names == list(distilled.class_names)
    assert loaded["label"][:4] == distilled.labels[:4].tolist()


def test_export_of_npz_is_exact(run, tmp_path, capsys):
    exported(run, "npz", tmp_path / "set.npz", capsys)
    arrays, distilled = np.load(tmp_path / "set.npz"), potstill.load(run)
    for name in ("images", "targets", "labels"):
        np.testing.assert_array_equal(arrays[name], getattr(distilled, name))
    assert arrays["class_names"].tolist() == list(distilled.class_names)
    assert arrays["pixels"].dtype == np.uint8


def test_export_of_a_png_shows_every_image_enlarged_without_smoothing(run, tmp_path, capsys):
    exported(run, "png", tmp_path / "grid.png", capsys, "--no-check")
    sheet, distilled = np.asarray(Image.open(tmp_path / "grid.png")), potstill.load(run)
    assert np.asarray(Image.open(run / run_folder.PICTURE)).shape == sheet.shape
    # A 12-fold enlargement of an image somewhere on the sheet, pixel by pixel.
    picture = np.kron(
        (distilled.pixels[0, 0] * 255).round().numpy().astype(np.uint8), np.ones((12, 12), np.uint8)
    )
    windows = np.lib.stride_tricks.sliding_window_view(sheet[:, :, 0], picture.shape)
    assert (windows[:40, :200] == picture).all(axis=(2, 3)).any()


def test_export_is_lossless_where_it_says_so_and_costs_accuracy_where_it_says_so(run):
    distilled = potstill.load(run)
    from potstill.distilled.exports import exported_images

    assert exported_images(distilled).shape == distilled.images.shape
    assert not torch.equal(exported_images(distilled), distilled.images)


def test_version_and_help_end_with_0(capsys):
    for words in (
        ["--version"],
        ["--help"],
        ["distill", "--help"],
        ["evaluate", "--help"],
        ["export", "--help"],
    ):
        with pytest.raises(SystemExit) as ending:
            main(words)
        assert ending.value.code == 0
    assert "--unroll N" in capsys.readouterr().out


PLACES = re.compile(
    r"paper [A-E]\.\d|\((?:figure|table|section|appendix|equation)s? |released commands"
)
"""A place in a paper."""


def help_of(capsys, *words: str) -> str:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    return capsys.readouterr().out


def test_places_in_the_paper_are_told_to_those_who_ask(capsys):
    methods = [["distill", "--method", name] for name in METHODS]
    parts = [["distill", "--real-sampler", "hardness"], ["distill", "--inner-optimizer", "sgd"]]
    commands = [[name] for name in ("evaluate", "export", "report", "diagnose", "study", "finish")]
    for words in (*methods, *parts, *commands, []):
        assert not PLACES.search(help_of(capsys, *words)), words
    whole = help_of(capsys, "distill", "--method", "growing", "--verbose")
    assert "most inner steps of an outer step (paper D.2: 3 windows) [60]" in whole
    assert "auto: unroll / 18 (paper D.4: 10 of 180)" in whole
    assert "(paper D.1: 0.001, and 0.0003" in help_of(capsys, "evaluate", "--verbose")
    assert main(["list"]) == 0
    assert not PLACES.search(capsys.readouterr().out)
    assert main(["list", "--verbose"]) == 0
    assert "towards T when the loss stagnates (figure 5)" in capsys.readouterr().out
    for words in (["distill", "--depth", "3"], ["evaluate", "x"]):
        sentence = "--verbose is for --help and for `potstill list`; leave it out"
        assert told(capsys, *words, "--verbose") == sentence


def test_one_thing_has_one_name(capsys):
    words = help_of(capsys, "distill", "--param", "basis", "--boost-blocks", "2")
    assert "with another --param than pixels, the bytes of so many" in words
    known = words.replace("time_budget", "").replace("--time-budget", "").lower()
    assert "budget" not in known


def test_python_takes_arrays_and_a_model_of_its_own():
    images = torch.rand(90, 8, 8)
    quick = {**QUICK, "ipc": 1, "classes_per_batch": "auto", "steps": 2}
    net = lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))  # noqa: E731
    options = {
        name: value
        for name, value in quick.items()
        if name not in ("model", "ipc", "width", "depth")
    }
    distilled = potstill.distill(
        images, torch.arange(90) % 3, ipc=2, model=net, class_names=["x", "y", "z"], **options
    )
    assert (len(distilled), distilled.class_names) == (6, ("x", "y", "z"))
    assert potstill.train(distilled, net)(distilled.preprocess(images[:4, None])).shape == (4, 3)
    with pytest.raises(potstill.InputError, match="cannot be imported; give it with model="):
        potstill.train(distilled)
    with pytest.raises(
        potstill.InputError,
        match="images and labels must be given together, got images without them",
    ):
        potstill.distill(images)


def test_python_evaluates_on_the_arrays_that_it_distilled(capsys):
    images, labels = torch.rand(90, 1, 8, 8), torch.arange(90) % 3
    quick = {**QUICK, "ipc": 1, "classes_per_batch": "auto", "steps": 2}
    distilled = potstill.distill(images, labels, **quick)
    rows = potstill.evaluate(distilled, images, labels, nets=2, baselines=["random"])
    assert [(row.name, row.accuracy.n) for row in rows] == [("distilled", 2), ("random", 2)]
    with pytest.raises(
        potstill.InputError, match="the data were arrays given in Python; give them again there"
    ):
        potstill.evaluate(distilled, nets=2)
    with pytest.raises(
        potstill.InputError,
        match=r"must have images of shape \(1, 8, 8\) like the distilled set, got \(1, 9, 9\)",
    ):
        potstill.evaluate(distilled, torch.rand(90, 1, 9, 9), labels)
    for wrong, sentence in (
        ({"nets": 0}, "nets must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"protocol": "papr"}, r"unknown protocol 'papr' \(did you mean 'paper'\?\); known: "),
        ({"learner": "neares"}, r"unknown learner 'neares' \(did you mean 'nearest'\?\); known: "),
        ({"protocl": "paper"}, r"unknown option 'protocl' \(did you mean 'protocol'\?\)"),
        ({"protocol": "dsa-1000", "steps": 5}, "steps must be auto with the protocol dsa-1000"),
        (
            {"baselines": ["rndom"]},
            r"baseline must be one of random, full; got 'rndom' \(did you mean 'random'",
        ),
    ):
        with pytest.raises(potstill.InputError, match=sentence):
            potstill.evaluate(distilled, images, labels, **wrong)
    with pytest.raises(potstill.InputError, match="steps must be at least 1, got -3"):
        potstill.train(distilled, steps=-3)


def test_a_copied_set_ignores_a_strangers_configuration_beside_it(run, tmp_path):
    (tmp_path / "config.toml").write_text("[project]\nname = 'x'\n")
    (tmp_path / artefact.ARTEFACT).write_bytes((run / artefact.ARTEFACT).read_bytes())
    assert main(["evaluate", str(tmp_path), "--nets", "1"]) == 0


def test_several_networks_are_measured_one_after_the_other(run, tmp_path, capsys):
    words = ["evaluate", run, "--models", "mlp,convnet,vgg11", "--nets", 1, "--steps", 2]
    assert main(list(map(str, words))) == 0
    output = capsys.readouterr().out
    written = [one for one in entries(run / EVALUATION, KEY) if one["settings"]["steps"] == 2]
    assert [one["settings"]["model"] for one in written] == ["mlp", "convnet", "vgg11"]
    assert [one["rows"][0]["model"] for one in written] == ["mlp", "convnet", "vgg11"]
    assert all(name in output for name in ("mlp", "convnet", "vgg11"))
    assert (
        "fixed steps; learning rate chosen on validation data" in written[2]["rows"][0]["protocol"]
    )
    wrong = told(capsys, "evaluate", run, "--models", "mlp,vgg12")
    assert wrong.startswith("unknown model 'vgg12' (did you mean 'vgg11'?)")
    assert "lr must be above 0, got -1.0" in told(capsys, "evaluate", run, "--lr", "-1")


def test_pictures_that_cost_accuracy_are_warned_of(run, monkeypatch, tmp_path, capsys):
    for gap, warned in ((0.005, False), (0.116, True)):
        figures = Figure(0.5, 0.1, 3), Figure(0.5 - gap, 0.1, 3)
        monkeypatch.setattr(measuring, "accuracy_of_export", lambda *_, **__: figures)  # noqa: B023
        assert main(["export", str(run), "--out", str(tmp_path / f"{gap}.png")]) == 0
        output = capsys.readouterr().out
        assert ("do not train on the pictures: they cost 11.6 points here" in output) == warned
