"""What `ensemble`, `evaluate` and `classify` found, as small tables for people; with --json they print all of it."""


def of_ensemble(result: dict) -> str:
    """The table of `repro.evaluate.ensemble`: one row per view, the result first."""
    rows = [_counted(VIEWS[name], found) for name, found in {"test": result, **result["views"]}.items()]
    models = " + ".join(result["members"])
    mean = f", mean of their {result['average']}" if len(result["members"]) > 1 else ""
    return f"{models}{mean}\n{table(['view', *COUNTED], rows)}"


def of_models(result: dict) -> str:
    """The table of `repro.export.evaluate`: one row per model, then their ensemble."""
    names = [name.removesuffix(".safetensors") for name in result["files"]]
    rows = [_counted(name, found | {"images": result["images"]}) for name, found in zip(names, result["members"])]
    if names[1:]:
        rows.append(_counted(f"ensemble, mean of their {result['average']}", result["ensemble"] | {"images": result["images"]}))
    return table(["model", *COUNTED], rows)


def of_images(rows: list[dict]) -> str:
    """The table of `repro.export.classify`: one row per class of an image, the most probable first."""
    return table(["image", "class", "probability"], [(*row.values(),)[:2] + (f"{row['probability']:.2%}",) for row in rows])


VIEWS = {"test": "test", "zoom": "test, enlarged", "scale_aspect": "training"}
COUNTED = "top-1", "top-5", "loss", "images"


def _counted(name: str, found: dict) -> tuple[str, ...]:
    shares = (f"{found[key] / found['images']:.2%}" for key in ("top1", "top5"))
    return name, *shares, f"{found['loss']:.4f}", f"{found['images']:,}"


def table(header: list[str], rows: list[tuple[str, ...]]) -> str:
    """Columns of text, as wide as they must be: the first to the left, the others to the right."""
    lines = [tuple(header), *rows]
    first, *others = (max(map(len, column)) for column in zip(*lines))
    return "\n".join("  ".join([line[0].ljust(first), *map(str.rjust, line[1:], others)]) for line in lines)
