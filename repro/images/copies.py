"""Copies packed data to each node's own disk, as the paper's authors did: one rank per node copies it and checks the copy."""

import shutil
from pathlib import Path

from repro import ReproError
from repro.images.packed import SPLITS, Packed, PackedError, data_folder
from repro.paths import given, replacing, writable_folder
from repro.ranks import comm


def copy_to_nodes(data: str, to: str) -> str:
    """Copies every split of `data` (a name or a folder) into the folder `to` of each node. Collective.

    Returns the folder to pass as --data. An existing copy is kept if it has the same manifest. Raises ReproError on every
    rank if a node has too little free space or if a copy's records do not match its manifest.
    """
    world = comm.world()
    source = data_folder(data)
    target = given(to) / source.name
    with world.together():
        if world.node_rank == 0:
            for split in SPLITS:
                if split == "val" and not (source / "val.lmdb").exists():
                    (target / "val.lmdb").unlink(missing_ok=True)  # of an earlier copy: its images may be trained on now
                    continue
                _copy(Packed(source / f"{split}.lmdb", source.name, split), writable_folder(target) / f"{split}.lmdb")
    return str(target)


def _copy(packed: Packed, path: Path) -> None:
    try:
        if Packed(path, packed.manifest["dataset"], packed.manifest["split"]).manifest == packed.manifest:
            return
    except PackedError:  # missing or incomplete
        pass
    size, free = packed.path.stat().st_size, shutil.disk_usage(path.parent).free
    if size > free:
        raise ReproError(
            f"{packed.path} takes {size / 1e9:.1f} GB, and {path.parent} has {free / 1e9:.1f} GB free: "
            f"copy to another disk, or train from where the data is"
        )
    with replacing(path) as temporary:
        shutil.copyfile(packed.path, temporary)
        Packed(temporary, packed.manifest["dataset"], packed.manifest["split"]).verify()
