"""The shape that a JSON file must have: `check` names the first part that has another. No torch."""

NUMBER = (int, float)
WORDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def check(value, shape, name: str = "it") -> None:
    """Raises ValueError unless `value`, as JSON gives it, has this shape; the message calls it `name`.

    A shape is a type or a tuple of types, {key: shape} for the keys that an object must have (it may have others),
    {str: shape} if all its values are such, or [shape] for a list of such. True is no whole number, as it is none in JSON.
    """
    kinds = shape if isinstance(shape, tuple) else (type(shape) if isinstance(shape, (dict, list)) else shape,)
    if type(value) not in kinds:
        said = WORDS[type(value)] if isinstance(value, (dict, list)) else repr(value)[:50]
        raise ValueError(f"{name} is {said}, not {' or '.join(WORDS[kind] for kind in kinds)}")
    if isinstance(shape, dict):
        for wanted, part in shape.items():
            for key in value if wanted is str else [wanted]:
                if key not in value:
                    raise ValueError(f"{key} is missing in {name}")
                check(value[key], part, key if name == "it" else f"{name}.{key}")
    elif isinstance(shape, list):
        for number, item in enumerate(value):
            check(item, shape[0], f"{name}[{number}]")
