"""Cases of which the quick tests run some, and `make test-long` all the others."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def variations(cases: Iterable[Any], *, quick: Collection[Any]) -> list[Any]:
    """Return the cases for `parametrize`, those that are not in `quick` marked `long`.

    Raise `ValueError` if `quick` has something that is no case.
    """
    cases = list(cases)
    unknown = [case for case in quick if case not in cases]
    if unknown:
        raise ValueError(f"no such cases: {unknown}")
    return [case if case in quick else _long(case) for case in cases]


def _long(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.long)
