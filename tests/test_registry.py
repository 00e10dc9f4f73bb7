"""Names of parts: registered ones, and parts of someone else's."""

import pytest

from potstill.data.whitening import Zca
from potstill.errors import InputError
from potstill.imports import trust
from potstill.registry import MODELS, PREPROCESSING, Registry

PARTS = Registry(
    "part", first_one=("test_registry:PARTS", "the first"), other=("test_registry:Own", "another")
)


class Own:
    """A part of someone else's."""


def test_a_registered_name_gives_its_part_and_lists_its_line():
    assert PARTS["first-one"] is PARTS
    assert PARTS.described() == [("first-one", "the first"), ("other", "another")]


def test_a_name_with_a_colon_is_imported_from_where_it_says():
    PARTS.check("test_registry:Own")
    trust("test_registry", "torch.nn")
    assert PARTS["test_registry:Own"] is Own
    assert MODELS["torch.nn:Linear"].__name__ == "Linear"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "first-ome",
            r"unknown part 'first-ome' \(did you mean 'first-one'\?\); known: first-one, other",
        ),
        ("test_registry:", r"expected 'package.module:name', got 'test_registry:'"),
        (":Own", r"expected 'package.module:name', got ':Own'"),
    ],
)
def test_a_wrong_name_is_told_before_anything_is_imported(name, message):
    with pytest.raises(InputError, match=message):
        PARTS.check(name)
    with pytest.raises(InputError, match=message):
        PARTS[name]


def test_what_cannot_be_imported_is_told_with_its_reason():
    PARTS.check("no_such_module:Part")
    trust("no_such_module")
    with pytest.raises(
        InputError,
        match="cannot import 'no_such_module' of 'no_such_module:Part': ModuleNotFoundError",
    ):
        PARTS["no_such_module:Part"]
    with pytest.raises(
        InputError, match=r"module 'test_registry' has no 'Owm' \(did you mean 'Own'\?\)"
    ):
        PARTS["test_registry:Owm"]


def test_the_name_of_a_part_leads_back_to_it():
    assert PREPROCESSING.name_of(Zca) == "zca"
    assert MODELS.name_of(Own) == "test_registry:Own"
    assert PARTS.name_of(Own) == "other"
