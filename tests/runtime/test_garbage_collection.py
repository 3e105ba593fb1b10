"""Python's garbage collector while many objects are made."""

import gc

import pytest

from milcore.runtime.garbage_collection import no_garbage_collection


@no_garbage_collection()
def is_on(fails: bool) -> bool:
    """Whether the collector is on within the function."""
    if fails:
        raise ValueError("within")
    return gc.isenabled()


def test_off_within_and_on_again() -> None:
    assert gc.isenabled()
    assert not is_on(fails=False)
    assert gc.isenabled()
    with pytest.raises(ValueError, match="within"):
        is_on(fails=True)
    assert gc.isenabled()


def test_stays_off_where_it_was() -> None:
    gc.disable()
    try:
        assert not is_on(fails=False)
        assert not gc.isenabled()
    finally:
        gc.enable()
