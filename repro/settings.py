"""`Settings`: what, beside recipe, model, data and code, determines the trained bits. No torch."""

from dataclasses import dataclass, field, fields

from repro import choose, whole_number


def _setting(default, help: str, choices: tuple = (), least: int = 0, most: int = 2**63 - 1):
    return field(default=default, metadata={"help": help, "choices": choices, "least": least, "most": most})


@dataclass(frozen=True)
class Settings:
    """How a recipe is computed. Raises ReproError for a value that cannot be, with what was meant."""

    seed: int = _setting(0, "initial weights, order of images, augmentation")
    size: int = _setting(0, "pixels per side that the network sees; 0: the data set's own", most=1 << 14)
    normalization: str = _setting(
        "release", "release: BGR less the mean, / 128, as in the authors' release; or torchvision's", ("release", "torchvision")
    )
    reduction: str = _setting(
        "exact", "exact: bit-identical weights on any number of ranks; fast: float32, half the bytes", ("exact", "fast")
    )
    precision: str = _setting(
        "auto", "auto: bf16 for large images where the processor has it, else fp32", ("auto", "fp32", "bf16")
    )
    device: str = _setting("auto", "auto: a GPU where torch sees one, else the CPU", ("auto", "cpu", "cuda"))
    threads: int = _setting(1, "threads that a rank computes with", least=1, most=1024)

    def __post_init__(self):
        for each in fields(self):
            value, allowed = getattr(self, each.name), each.metadata
            if allowed["choices"]:
                choose(each.name, value, allowed["choices"])
            else:
                whole_number(each.name, value, allowed["least"], allowed["most"])


def non_default(instance) -> dict:
    """The fields of a dataclass instance that differ from their defaults, also of dataclasses in its tuples.

    What identifies a run leaves out the rest, so that a field added later changes no run that does without it.
    """
    found = {}
    for each in fields(instance):
        value = getattr(instance, each.name)
        if value != each.default:
            found[each.name] = (
                [non_default(one) if hasattr(one, "__dataclass_fields__") else one for one in value]
                if isinstance(value, tuple)
                else value
            )
    return found
