"""Cases in which every pair of values of any two options occurs (pairwise testing, as PICT does it)."""

from collections.abc import Container, Mapping, Sequence
from itertools import combinations

Case = dict[str, str]
Choice = tuple[str, str]


def pairwise(options: Mapping[str, Sequence[str]]) -> list[Case]:
    """Few cases, chosen greedily: each begins with a pair that has not occurred yet."""
    missing = dict.fromkeys(
        ((first, a), (second, b))
        for first, second in combinations(options, 2)
        for a in options[first]
        for b in options[second]
    )
    order = {option: number for number, option in enumerate(options)}
    cases = []
    while missing:
        case: Case = dict(next(iter(missing)))
        for option in options:
            if option not in case:
                case[option] = _best(option, options[option], case, missing, order)
        cases.append({option: case[option] for option in options})
        for pair in combinations(cases[-1].items(), 2):
            missing.pop(pair, None)
    return cases


def _best(
    option: str,
    values: Sequence[str],
    case: Case,
    missing: Container[tuple[Choice, Choice]],
    order: Mapping[str, int],
) -> str:
    """The value that makes most new pairs with what the case has already."""

    def new_pairs(value: str) -> int:
        return sum(_pair(order, (option, value), chosen) in missing for chosen in case.items())

    return max(values, key=new_pairs)


def _pair(order: Mapping[str, int], one: Choice, other: Choice) -> tuple[Choice, Choice]:
    return (one, other) if order[one[0]] < order[other[0]] else (other, one)
