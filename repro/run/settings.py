"""`Settings`: everything besides recipe, model, data and code that determines the trained weights. No torch."""

from dataclasses import dataclass, field, fields

from repro import choose, whole_number

MOST_THREADS = 1024  # of one kind in a rank: absurd values crash without a message
PRECISIONS = ("auto", "fp32", "bf16")
DEVICES = ("auto", "cpu", "cuda")
AVERAGES = ("softmax", "logit")  # what an ensemble averages of its members' predictions
MEANS = (*AVERAGES, "weights")  # or the members themselves, which makes one model of them


def _setting(default, help: str, choices: tuple = (), least: int = 0, most: int = 2**63 - 1):
    return field(default=default, metadata={"help": help, "choices": choices, "least": least, "most": most})


@dataclass(frozen=True)
class Settings:
    """How a recipe is computed. Raises ReproError for an invalid value, with a suggestion."""

    seed: int = _setting(0, "initial weights, order of images, augmentation")
    size: int = _setting(0, "pixels per side that the network sees; 0: the data set's own", most=1 << 14)
    normalization: str = _setting(
        "release", "release: BGR minus the mean, / 128, as in the authors' release; or torchvision", ("release", "torchvision")
    )
    reduction: str = _setting(
        "exact", "exact: bit-identical weights on any number of ranks; fast: float32, half the bytes", ("exact", "fast")
    )
    precision: str = _setting("auto", "auto: bf16 for large images if the processor supports it, otherwise fp32", PRECISIONS)
    split: str = _setting("test", "images that models are tested on; val to choose anything by", ("test", "val"))
    device: str = _setting("auto", "auto: a GPU if torch sees one, otherwise the CPU", DEVICES)
    threads: int = _setting(1, "threads per rank for computation", least=1, most=MOST_THREADS)

    def __post_init__(self):
        for setting in fields(self):
            value, allowed = getattr(self, setting.name), setting.metadata
            if allowed["choices"]:
                choose(setting.name, value, allowed["choices"])
            else:
                whole_number(setting.name, value, allowed["least"], allowed["most"])


def non_default(instance) -> dict:
    """Returns the fields of a dataclass instance that differ from their defaults, also for dataclasses in its tuples.

    A run's identity contains only these, so that a field added later does not change runs that do not use it.
    """
    changed = {}
    for parameter in fields(instance):
        value = getattr(instance, parameter.name)
        if value != parameter.default:
            changed[parameter.name] = (
                [non_default(item) if hasattr(item, "__dataclass_fields__") else item for item in value]
                if isinstance(value, tuple)
                else value
            )
    return changed
