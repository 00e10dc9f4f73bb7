"""Contract checks for parts that users write, such as methods, networks and data sources.

    from potstill.testing import check_method
    check_method("mypackage.module:MyMethod")

Each check raises `ContractError` with one sentence: the part, the rule, what was found, and what
the rule protects. The same checks run over all of potstill's own parts in its tests.
"""

from potstill.testing.contracts import ContractError
from potstill.testing.methods import check_method
from potstill.testing.parameterisations import check_parameterisation
from potstill.testing.problems import small_examples, small_problem
from potstill.testing.sources import check_model, check_source

__all__ = [
    "ContractError",
    "check_method",
    "check_model",
    "check_parameterisation",
    "check_source",
    "small_examples",
    "small_problem",
]
