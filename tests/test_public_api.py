"""The names, signatures and options that users rely on change only on purpose."""

import difflib

from tests.public_api import PINNED, describe


def test_the_public_surface_is_the_pinned_one() -> None:
    changed = list(
        difflib.unified_diff(PINNED.read_text().splitlines(), describe().splitlines(), n=0)
    )
    assert not changed, "\n".join([*changed, "if this is meant: python -m tests.public_api"])
