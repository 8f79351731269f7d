"""How far two sequences are the same."""

from collections.abc import Sequence


def common_length(first: Sequence, second: Sequence) -> int:
    """How many items two sequences have in common from the beginning."""
    # by halves, as slices are compared faster than items one by one
    same, most = 0, min(len(first), len(second))
    while same < most:
        middle = (same + most + 1) // 2
        if first[same:middle] == second[same:middle]:
            same = middle
        else:
            most = middle - 1
    return same
