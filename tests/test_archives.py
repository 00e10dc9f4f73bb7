"""Zip and tar files of image folders: read as the folders are, and never unpacked."""

import bz2
import gzip
import io
import lzma
import random
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_layouts import birds, shades, tiny

import potstill
from potstill.cli.parser import main
from potstill.config.sections import DataConfig
from potstill.data import archives
from potstill.data.archives import opened
from potstill.data.sources import read
from potstill.data.splits import Dataset
from potstill.data.walking import LeftOut
from potstill.distillation.run_folder import RunFolder
from potstill.errors import InputError
from potstill.progress import Listener

__all__ = ["birds", "tiny"]
ENDS = ("zip", "tar", "tar.gz", "tgz", "tar.xz", "tar.bz2")


def png(shade: int, side: int = 6) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (side, side), (shade, shade, shade)).save(written, "PNG")
    return written.getvalue()


def photos(splits: tuple[str, ...] = ("",), top: str = "") -> dict[str, bytes]:
    """Three cats of shades 0, 1, 2 and three dogs of 100, 101, 102 in each split."""
    return {
        "/".join(filter(None, (top, split, name, f"{index}.png"))): png(100 * label + index)
        for split in splits
        for label, name in enumerate(("cat", "dog"))
        for index in range(3)
    }


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """Write an archive of the kind that its name tells."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in files.items():
                packed.writestr(name, content)
        return path
    kind = {"gz": "gz", "tgz": "gz", "xz": "xz", "bz2": "bz2", "tar": ""}[path.suffix[1:]]
    mode: Any = f"w:{kind}"
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def unpack(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def load(path: Path, tmp_path: Path, **options: Any) -> Dataset:
    return read(DataConfig(data=str(path), cache_dir=str(tmp_path / "cache"), **options))


def assert_same(one: Dataset, other: Dataset) -> None:
    """Both hold the same examples in the same order, and one goes on where the other began."""
    assert one.class_names == other.class_names
    assert one.fingerprint == other.fingerprint
    assert one.splits.keys() == other.splits.keys()
    for split, arrays in one.splits.items():
        assert np.array_equal(arrays.images, other.splits[split].images)
        assert np.array_equal(arrays.labels, other.splits[split].labels)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("top", ["", "photos", "data/photos"])
def test_an_archive_is_read_as_the_folder_that_it_holds(end, top, tmp_path):
    files = photos(("train", "test"), top)
    shuffled = dict(random.Random(3).sample(list(files.items()), len(files)))
    dataset = load(pack(tmp_path / f"photos.{end}", shuffled), tmp_path)
    assert {one.name for one in tmp_path.iterdir()} == {f"photos.{end}", "cache"}
    assert dataset.class_names == ("cat", "dog")
    for arrays in (dataset.train, dataset.test):
        assert arrays is not None
        assert shades(arrays) == [0, 1, 2, 100, 101, 102]
        assert arrays.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert dataset.origins == {
        "train": f"photos.{end}/train/", "test": f"photos.{end}/test/"
    }  # fmt: skip
    assert dataset.left_out == ()
    assert_same(dataset, load(unpack(tmp_path / "folder", files), tmp_path))


@pytest.mark.parametrize("end", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("known", ["tiny", "birds"])
def test_well_known_layouts_are_read_from_archives(end, known, tmp_path, request):
    root = request.getfixturevalue(known)
    files = {
        path.relative_to(root.parent).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }
    dataset = load(pack(tmp_path / f"known.{end}", files), tmp_path)
    folder = load(root, tmp_path)
    assert_same(dataset, folder)
    assert dataset.left_out == folder.left_out


@pytest.mark.parametrize("storage", ["memory", "mapped"])
@pytest.mark.parametrize("end", ["zip", "tar", "tar.xz"])
def test_an_archive_may_be_kept_as_a_memory_map(storage, end, tmp_path):
    dataset = load(pack(tmp_path / f"photos.{end}", photos()), tmp_path, storage=storage)
    assert shades(dataset.train) == [0, 1, 2, 100, 101, 102]
    assert dataset.mapped == (storage == "mapped")
    assert dataset.disk_bytes == (tmp_path / f"photos.{end}").stat().st_size


@pytest.mark.parametrize("prefix", ["", "archive:", "folder:"])
def test_a_run_says_what_it_read_and_where(prefix, tmp_path):
    path, said = pack(tmp_path / "photos.tar.gz", photos(("train", "val"))), list[str]()
    out = tmp_path / "run"
    potstill.distill(
        f"{prefix}{path}", model="mlp", width=8, depth=1, steps=1, unroll=2, window=1, lengths=(3,),
        validation_nets=1, threads=1, compile="off", preprocess="none",
        cache_dir=str(tmp_path / "cache"), out=out, listener=Listener(say=said.append),
    )  # fmt: skip
    assert said[0].startswith("2 classes (cat, dog), images of 3 x 6 x 6")
    assert "4 train (photos.tar.gz/train/)" in said[0]
    assert "6 test (photos.tar.gz/val/, there being no test split)" in said[0]
    kind = prefix.rstrip(":") or "archive"
    assert RunFolder(out).config().data.data == f"{kind}:{path}"
    assert RunFolder(out).config().data.name == "photos"


def test_what_is_left_out_of_an_archive_is_counted(tmp_path):
    files = photos() | {"cat/a.txt": b"x", "cat/b.heic": b"x", "__MACOSX/cat/._0.png": b"x"}
    files |= {"cat/.hidden.png": png(255), "cat/@eaDir/1.png": png(255)}
    dataset = load(pack(tmp_path / "photos.zip", files), tmp_path)
    assert sorted(dataset.left_out) == [
        "1 .heic files (pip install pillow-heif to read them)",
        "1 .txt files",
    ]
    assert shades(dataset.train) == [0, 1, 2, 100, 101, 102]


def test_an_empty_class_folder_of_an_archive_is_a_class_without_images(tmp_path):
    path = pack(tmp_path / "photos.zip", photos())
    with zipfile.ZipFile(path, "a") as packed:
        packed.mkdir("eel") if hasattr(packed, "mkdir") else packed.writestr("eel/", b"")
    with pytest.raises(InputError, match=r"class folder .*photos.zip/eel holds no images"):
        load(path, tmp_path)


# Names that lead elsewhere, and links


OUTSIDE = ["/etc/1.png", "../1.png", "cat/../../1.png", "C:/cat/1.png", "cat/..\\..\\1.png"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_of_a_zip_are_counted_and_not_read(name, tmp_path):
    files = {"cat/x.png": png(50), **photos(), name: png(255)}
    dataset = load(pack(tmp_path / "photos.zip", files), tmp_path)
    assert 255 not in shades(dataset.train)
    assert dataset.left_out == ("1 files whose names lead out of the archive",)


@pytest.mark.parametrize("name", OUTSIDE[:3])
def test_names_that_lead_out_of_a_tar_are_counted_and_not_read(name, tmp_path):
    dataset = load(pack(tmp_path / "photos.tar.gz", photos() | {name: png(255)}), tmp_path)
    assert shades(dataset.train) == [0, 1, 2, 100, 101, 102]
    assert dataset.left_out == ("1 files whose names lead out of the archive",)


@pytest.mark.parametrize("target", ["cat/0.png", "../secret.png", "{tmp}/secret.png"])
@pytest.mark.parametrize("end", ["zip", "tar", "tar.gz"])
def test_links_in_an_archive_are_not_followed(target, end, tmp_path):
    (tmp_path / "secret.png").write_bytes(png(255))
    target = target.format(tmp=tmp_path)
    path = pack(tmp_path / f"photos.{end}", photos())
    if end == "zip":
        info = zipfile.ZipInfo("cat/link.png")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        with zipfile.ZipFile(path, "a") as packed:
            packed.writestr(info, target)
    else:
        content = gzip.decompress(path.read_bytes()) if end == "tar.gz" else path.read_bytes()
        stream = io.BytesIO(content)
        with tarfile.open(fileobj=stream, mode="a") as tar:
            for name, kind in (("sym", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
                link = tarfile.TarInfo(f"cat/{name}.png")
                link.type, link.linkname = kind, target
                tar.addfile(link)
            tar.addfile(fifo("cat/pipe.png"))
        content = stream.getvalue()
        path.write_bytes(gzip.compress(content) if end == "tar.gz" else content)
    dataset = load(path, tmp_path)
    assert shades(dataset.train) == [0, 1, 2, 100, 101, 102]
    count = 1 if end == "zip" else 2
    assert dataset.left_out == (
        f"{count} links in the archive, which are not followed",
        *(() if end == "zip" else ("1 special files",)),
    )


def fifo(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.FIFOTYPE
    return info


def test_a_file_in_very_many_folders_is_left_out(tmp_path):
    deep = "cat/" + "a/" * 5000 + "1.png"
    dataset = load(pack(tmp_path / "photos.tar", photos() | {deep: png(255)}), tmp_path)
    assert len(dataset.train.labels) == 6
    assert dataset.left_out == ("1 files in more than 64 folders one in another",)


def test_a_file_with_the_name_of_a_folder_is_left_out(tmp_path):
    dataset = load(pack(tmp_path / "photos.tar", photos() | {"cat": b"x"}), tmp_path)
    assert len(dataset.train.labels) == 6
    assert dataset.left_out == ("1 files that have the name of a folder",)


def test_of_two_files_of_one_name_the_later_one_counts(tmp_path):
    path = pack(tmp_path / "photos.tar", photos())
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("cat/0.png")
        info.size = len(png(7))
        tar.addfile(info, io.BytesIO(png(7)))
    assert shades(load(path, tmp_path).train)[0] == 7  # as unpacking would have it


def test_names_of_old_zips_are_read(tmp_path):
    files = {
        name.replace("cat", "猫").replace("dog", "犬"): content
        for name, content in photos().items()
    }
    path = pack(tmp_path / "photos.zip", files)
    # As macOS writes them: UTF-8, without the flag that says so.
    path.write_bytes(without_utf8_flag(path.read_bytes()))
    with zipfile.ZipFile(path) as packed:
        assert "猫/0.png" not in packed.namelist()
    assert load(path, tmp_path).class_names == ("犬", "猫")
    windows = {name.replace("/", "\\"): content for name, content in photos(top="x").items()}
    assert load(pack(tmp_path / "w.zip", windows), tmp_path).class_names == ("cat", "dog")


def without_utf8_flag(content: bytes) -> bytes:
    changed = bytearray(content)
    for magic, place in ((b"PK\3\4", 7), (b"PK\1\2", 9)):
        start = content.find(magic)
        while start >= 0:
            changed[start + place] &= ~0x08
            start = content.find(magic, start + 1)
    return bytes(changed)


# Damage, encryption, sizes beyond reason


def test_an_encrypted_zip_is_told(tmp_path):
    path = pack(tmp_path / "photos.zip", photos())
    content = bytearray(path.read_bytes())
    for magic, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.find(magic) + place] |= 1
    path.write_bytes(content)
    with pytest.raises(
        InputError, match=r"photos.zip must not be encrypted, cat/0.png in it is; unpack it and"
    ):
        load(path, tmp_path)


@pytest.mark.parametrize("end", ["zip", "tar.gz", "tar.xz", "tar"])
def test_a_bomb_is_refused_before_it_is_unpacked(end, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "REASONABLE_BYTES", 10**6)
    files = photos() | {"cat/bomb.png": bytes(10**7)}
    path = pack(tmp_path / f"photos.{end}", files)
    if end == "tar":  # every byte is there: no bomb
        with pytest.raises(InputError, match=r"cannot read the image .*bomb.png"):
            load(path, tmp_path)
        return
    for part in ("held", "read_from_zip"):
        whole = getattr(archives, part)

        def never(*given: Any, whole: Any = whole) -> Any:
            assert "bomb.png" not in str(given)
            return whole(*given)

        monkeypatch.setattr(archives, part, never)
    with pytest.raises(
        InputError,
        match=r"photos.* must hold at most 100 times its own [\d,]+ bytes, it declares 10,00\d,",
    ):
        load(path, tmp_path)


def test_overlapping_files_of_a_zip_are_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "REASONABLE_BYTES", 10**6)
    path = pack(tmp_path / "photos.zip", {"cat/0.png": random.Random(0).randbytes(10**5)})
    content = path.read_bytes()
    start, end = content.find(b"PK\1\2"), content.find(b"PK\5\6")
    entry, last = content[start:end], bytearray(content[end:])
    last[8:12] = (500).to_bytes(2, "little") * 2
    last[12:16] = (500 * len(entry)).to_bytes(4, "little")
    path.write_bytes(content[:start] + entry * 500 + last)
    with pytest.raises(InputError, match="must hold at most 100 times its own"):
        load(path, tmp_path)


def test_a_header_of_a_tar_cannot_ask_for_absurdly_much(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 2**31
    for path, packed in ((tmp_path / "a.tar", bytes), (tmp_path / "a.tar.gz", gzip.compress)):
        path.write_bytes(packed(info.tobuf() + bytes(4096)))
        with pytest.raises(InputError, match="a header must take at most 16,777,216 bytes"):
            load(path, tmp_path)


def test_sparse_files_of_a_tar_are_special_ones(tmp_path):
    """As `tar --sparse` writes a hole of a terabyte: 512 bytes in the tar."""
    for name in ("a.tar", "a.tar.gz"):
        path = pack(tmp_path / name, photos())
        packed = name.endswith("gz")
        content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
        whole = b"".join((sparse_file("cat/hole.png", 2**40), content))
        path.write_bytes(gzip.compress(whole) if packed else whole)
        dataset = load(path, tmp_path)
        assert len(dataset.train.labels) == 6
        assert dataset.left_out == ("1 special files",)


def sparse_file(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = tarfile.itn(0, 12, tarfile.GNU_FORMAT) + tarfile.itn(512, 12, 1)
    header[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512)


def test_a_compressed_tar_must_fit_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "IN_MEMORY", 300)
    path = pack(tmp_path / "photos.tgz", photos())
    with pytest.raises(
        InputError, match=r"at most 300 bytes, as a compressed tar is read into memory, .* or pack"
    ):
        load(path, tmp_path)
    assert load(pack(tmp_path / "photos.tar", photos()), tmp_path).class_names == ("cat", "dog")


def test_a_file_too_large_to_be_read_at_once_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "AT_ONCE", 1000)
    monkeypatch.setattr(archives.require_small, "__defaults__", (1000,))
    for end in ("zip", "tar", "tgz"):
        files = photos() | {"cat/long.png": random.Random(0).randbytes(2000)}
        path = pack(tmp_path / f"photos.{end}", files)
        with pytest.raises(InputError, match=r"long.png must take at most 1,000 bytes, it declar"):
            load(path, tmp_path)


@pytest.mark.parametrize("size", [-512, -1])
def test_a_negative_size_in_a_tar_ends(size, tmp_path):
    info = tarfile.TarInfo("cat/0.png")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(10240))
    with pytest.raises(InputError, match=r"must hold all of cat/0.png, -\d+ bytes, it is damaged"):
        load(tmp_path / "a.tar", tmp_path)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9, 0.98])
def test_an_archive_that_was_cut_short_is_told(end, share, tmp_path):
    path = pack(tmp_path / f"photos.{end}", photos(("train", "test")))
    content = path.read_bytes()
    kept = int(share * len(content.rstrip(b"\0")))
    path.write_bytes(content[:kept])
    with pytest.raises(InputError, match=r"whole zip or tar|cut short"):
        load(path, tmp_path)


def test_a_tar_that_was_cut_between_two_files_is_told(tmp_path):
    path = pack(tmp_path / "photos.tar", photos())
    with tarfile.open(path) as tar:
        cut = tar.getmembers()[4].offset
    for packed, name in ((bytes, "cut.tar"), (gzip.compress, "cut.tar.gz")):
        (tmp_path / name).write_bytes(packed(path.read_bytes()[:cut]))
        with pytest.raises(InputError, match=r"must end with blocks of zeros.* cut short at byte"):
            load(tmp_path / name, tmp_path)


def test_two_tars_in_one_file_are_told(tmp_path):
    one, two = (pack(tmp_path / name, photos()).read_bytes() for name in ("1.tar", "2.tar"))
    (tmp_path / "both.tar").write_bytes(one + two)
    dataset = load(tmp_path / "both.tar", tmp_path)
    assert dataset.left_out == ("what follows the end of the archive, as if two were one file",)


def test_bytes_that_were_damaged_are_told_or_do_not_matter(tmp_path):
    rng = random.Random(0)
    for end in ("zip", "tar", "tgz", "tar.xz"):
        whole = load(pack(tmp_path / f"whole.{end}", photos()), tmp_path)
        content = (tmp_path / f"whole.{end}").read_bytes()
        for _ in range(60):
            broken = bytearray(content)
            for _ in range(rng.randint(1, 3)):
                broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
            (tmp_path / f"broken.{end}").write_bytes(broken)
            try:
                dataset = load(tmp_path / f"broken.{end}", tmp_path)
            except InputError:
                continue
            assert len(dataset.train.labels) <= len(whole.train.labels)


def test_a_name_may_tell_another_kind_of_archive(tmp_path):
    plain = pack(tmp_path / "a.tar", photos())
    shutil.copy(plain, tmp_path / "b.tar.gz")
    (tmp_path / "c.tar").write_bytes(lzma.compress(plain.read_bytes()))
    (tmp_path / "d.zip").write_bytes(bz2.compress(plain.read_bytes()))
    for name in ("b.tar.gz", "c.tar", "d.zip"):
        assert shades(load(tmp_path / name, tmp_path).train) == [0, 1, 2, 100, 101, 102]


@pytest.mark.parametrize("name", ["train.csv", "data.npz", "a/train-0.parquet", "photos.tar"])
def test_an_archive_of_tables_is_to_be_unpacked(name, tmp_path):
    for end in ("zip", "tar"):
        path = pack(tmp_path / f"set.{end}", {name: b"x", "readme.txt": b"x"})
        with pytest.raises(
            InputError,
            match=rf"set.{end} must hold folders of images, it holds {name}, which is read from a "
            "file of its own only; unpack it and give that with --data",
        ):
            load(path, tmp_path)
    listed = {f"images/{index}.png": png(index) for index in range(3)} | {"labels.csv": b"x"}
    with pytest.raises(InputError, match=r"it holds labels\.csv, which is read"):
        load(pack(tmp_path / "listed.zip", listed), tmp_path)
    beside = photos() | {"labels.csv": b"x"}
    assert len(load(pack(tmp_path / "beside.zip", beside), tmp_path).train.labels) == 6


def test_an_empty_archive_and_one_without_images_are_told(tmp_path, capsys):
    for end in ("zip", "tar"):
        with pytest.raises(InputError, match=r"must hold files, found none|must be a whole zip"):
            load(pack(tmp_path / f"empty.{end}", {}), tmp_path)
        with pytest.raises(InputError, match="one sub-folder of images for each class, found none"):
            load(pack(tmp_path / f"text.{end}", {"a.txt": b"x"}), tmp_path)
    (tmp_path / "folder.zip").mkdir()
    with pytest.raises(InputError, match="is a folder; give a zip or tar"):
        read(DataConfig(data=f"archive:{tmp_path / 'folder.zip'}"))
    (tmp_path / "a.rar").write_bytes(b"Rar!")
    assert main(["distill", "--data", str(tmp_path / "a.rar")]) == 2
    assert "zip or tar, got" in capsys.readouterr().err


def test_options_of_columns_have_no_effect_with_folders_in_archives(tmp_path):
    path = pack(tmp_path / "photos.zip", photos())
    for option in ("image_column", "label_column"):
        with pytest.raises(InputError, match=f"{option} has no effect"):
            load(path, tmp_path, **{option: "x"})


def test_a_member_behaves_as_a_path(tmp_path):
    files = photos(("train",)) | {"train/cat/a b/1.png": b"x", "train/cat.b/0.png": b"y"}
    folder = unpack(tmp_path / "set", files)
    root = opened(pack(tmp_path / "set.zip", files), LeftOut())
    paths = [folder, *folder.rglob("*")]
    members = {str(path.relative_to(folder)): root for path in paths}
    for name in members:
        members[name] = root if name == "." else root / name
    for path in paths:
        one = members[str(path.relative_to(folder))]
        assert (one.is_dir(), one.is_file()) == (path.is_dir(), path.is_file())
        if path != folder:
            assert (one.name, one.suffix) == (path.name, path.suffix)
            assert one.relative_to(root).as_posix() == path.relative_to(folder).as_posix()
            assert str(one.parent) == str(one).rpartition("/")[0]
        if path.is_dir():
            assert {inner.name for inner in one.iterdir()} == {p.name for p in path.iterdir()}
        else:
            assert one.read_bytes() == path.read_bytes()
    ordered = [str(path.relative_to(folder)) for path in sorted(paths[1:])]
    assert [one.inner for one in sorted(members[name] for name in ordered)] == ordered
    with pytest.raises(FileNotFoundError):
        (root / "none").read_bytes()
