"""Priorities of others: an order of starts in which nothing is waited for."""

from collections.abc import Mapping

from supervisord_py.convert.draft import Conversion


def order_by_rank(conversion: Conversion, ranks: Mapping[str, int]) -> None:
    """Let each unit start after those of the next lower rank, once their programs have been executed.

    Args:
        conversion: Holds the drafts.
        ranks: By unit or template; those that start first have the lowest. A template in a relation means all of its
            instances.
    """
    lower: list[str] = []
    for rank in sorted(set(ranks.values())):
        here = [name for name, each in ranks.items() if each == rank and name in conversion.drafts]
        for name in here:
            if lower:
                conversion.drafts[name].put("unit", "after", [{"unit": other, "until": "started"} for other in lower])
        lower = here or lower
