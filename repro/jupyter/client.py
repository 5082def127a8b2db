"""Runs a notebook's cells in a kernel of their own, by nbclient. `notebooks.execute` checks what goes in and what came out."""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

from repro.paths import folder_of_sockets, replacing

INJECTED = "injected-parameters"  # the tag that papermill, too, gives the cell


def inject(book: NotebookNode, parameters: dict) -> None:
    """Adds a cell with these values below the cell that is tagged "parameters", or as the first, as papermill does."""
    lines = ["# Parameters", *(f"{name} = {value!r}" for name, value in parameters.items())]
    cell = nbformat.v4.new_code_cell("\n".join([*lines, ""]), metadata={"tags": [INJECTED]})
    tagged = (number for number, cell in enumerate(book.cells, start=1) if "parameters" in cell.metadata.get("tags", []))
    book.cells.insert(next(tagged, 0), cell)


def run(book: NotebookNode, output: Path, folder: Path, printed: bool = False, timeout: int | None = None) -> None:
    """Runs the cells in `folder` up to the first that fails; `output` has the notebook as it is after each of them.

    If `printed`, what the cells print is also printed here. A cell may take `timeout` seconds. Raises nbclient's errors.
    """
    # Sockets in a private folder: others could listen to TCP, and the default names are the same for every kernel. So are
    # the kernel's other files: HOME may be read-only, and what the user has IPython do at its start must not change results.
    with tempfile.TemporaryDirectory(prefix="repro-", dir=folder_of_sockets()) as sockets:
        private = {"transport": "ipc", "ip": f"{sockets}/kernel", "connection_file": f"{sockets}/kernel.json"}
        config = Config(KernelManager=private)
        where = {"metadata": {"path": str(folder)}}  # of the kernel: this process, threads and all, stays where it is
        client = _Client(book, timeout=timeout, kernel_name="python3", resources=where, config=config)
        client.printed = printed
        client.reset_execution_trackers()
        with client.setup_kernel(
            env=os.environ | {"IPYTHONDIR": sockets}
        ):  # `client.execute` would also handle this process's signals
            for number, cell in enumerate(book.cells):
                try:
                    client.execute_cell(cell, number)
                finally:
                    with replacing(output) as temporary:
                        nbformat.write(book, temporary)


class _Client(NotebookClient):
    printed = False

    def process_message(self, *message):
        output = super().process_message(*message)
        if self.printed and output and output.get("name") == "stdout":
            print(output.text, end="", flush=True)
        return output
