"""Compares two label maps, and describes in plain words how they differ. No torch, no NumPy."""


def compare_labels(expected: list[str], found: list[str]) -> str:
    """Describes how the label map `found` (class names in the order of their numbers) differs from `expected`; "" if equal.

    A wrong map causes no error by itself, only an accuracy near chance, so the common mistakes are distinguished.
    """
    if found == expected:
        return ""
    if len(found) != len(expected):
        return f"{len(found)} classes instead of {len(expected)}{_extra(expected, found)}"
    number = next(number for number, (one, other) in enumerate(zip(expected, found)) if one != other)
    example = f"class {number} is {found[number]} instead of {expected[number]}"
    if len(found) > 1 and (found[1:] == expected[:-1] or found[:-1] == expected[1:]):
        return f"the classes are shifted by one: {example}"
    if sorted(found) == sorted(expected):
        return f"the same classes are in another order (permuted): e.g. {example}"
    others = sum(one != other for one, other in zip(expected, found))
    return f"{others} of the {len(found)} classes differ: e.g. {example}"


def _extra(expected: list[str], found: list[str]) -> str:
    longer, shorter = sorted((expected, found), key=len, reverse=True)
    if longer[1:] == shorter:
        return f" (of the {len(longer)}, index 0 is {longer[0]}: a background class? The others are the same, shifted by one)"
    if longer[:-1] == shorter:
        return f" (of the {len(longer)}, the last is {longer[-1]}; the others are the same)"
    return f" (do the {len(longer)} have a background class at index 0?)" if len(longer) == len(shorter) + 1 else ""
