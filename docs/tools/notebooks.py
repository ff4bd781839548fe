"""Keep the notebooks in step: ``python docs/tools/notebooks.py`` writes what differs.

- The first cell of code installs the package where it is not installed. Its address is the
  Repository that pyproject.toml names under [project.urls]. With one, links under the title open
  the notebook on Colab, Kaggle and Binder.
- Every picture is described by the ``alt`` in its cell's metadata.
- ``NAME.ko.ipynb`` is ``NAME.ipynb`` in Korean: it takes over cells of code and their outputs, and
  has text and descriptions of its own. Cells belong together by their id.
"""

import json
import tomllib
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"
RUN = {"en": "Run it on", "ko": "실행하기:"}

INSTALL = '''\
# Run this cell first. Where numba_rnn is not installed, as on Colab, it is installed from SOURCE:
# an address for pip, such as git+https://... or file:///... (a checkout, or a wheel).
SOURCE = "{source}"

import importlib.util

if importlib.util.find_spec("numba_rnn") is None:
    if not SOURCE:
        raise ModuleNotFoundError("numba_rnn is not installed: write into SOURCE where it is")
    %pip install --quiet "numba-rnn[cells,viz] @ {{SOURCE}}"'''


def repository() -> str | None:
    """The address of the repository, without a slash at its end; None if it has none yet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    address: str | None = project.get("urls", {}).get("Repository")
    return address and address.rstrip("/").removesuffix(".git")


def links(address: str, name: str, language: str) -> str:
    """Where a notebook can be run without anything being installed, as a line of Markdown."""
    place = urlsplit(address).path.strip("/")
    file = f"notebooks/{name}"
    found = {
        "Colab": f"https://colab.research.google.com/github/{place}/blob/HEAD/{file}",
        "Kaggle": f"https://kaggle.com/kernels/welcome?src={address}/blob/HEAD/{file}",
        "Binder": f"https://mybinder.org/v2/gh/{place}/HEAD?labpath={file}",
    }
    return " ".join([RUN[language], *(f"[{title}]({link})" for title, link in found.items())])


def put_install(notebook: dict[str, Any], name: str, address: str | None) -> None:
    """Put the first cell, and the links under the title."""
    title, first = notebook["cells"][:2]
    source = INSTALL.format(source=f"git+{address}" if address else "")
    if first["id"] != "install":
        metadata = {"jupyter": {"source_hidden": True}, "tags": ["install"]}
        first = {"cell_type": "code", "execution_count": 1, "id": "install", "outputs": []}
        notebook["cells"].insert(1, first | {"metadata": metadata})
        number(notebook)
    notebook["cells"][1]["source"] = source.splitlines(keepends=True)
    language = "ko" if name.endswith(".ko.ipynb") else "en"
    lines = [line for line in title["source"] if not line.startswith(RUN[language])]
    if len(lines) < len(title["source"]):  # with its empty line
        del lines[2]
    if address:
        lines[2:2] = [links(address, name, language) + "\n", "\n"]
    title["source"] = lines


def number(notebook: dict[str, Any]) -> None:
    """Count the cells of code; they ran in this order."""
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for k, cell in enumerate(code, 1):
        cell["execution_count"] = k
        for output in cell["outputs"]:
            if "execution_count" in output:
                output["execution_count"] = k


def in_korean(english: dict[str, Any], korean: dict[str, Any]) -> dict[str, Any]:
    """The English notebook with text and descriptions of pictures of the Korean one."""
    own = {cell["id"]: cell for cell in korean["cells"]}
    cells = []
    for cell in english["cells"]:
        mine = own.get(cell["id"], {"metadata": {}})
        if cell["cell_type"] == "markdown":
            if "source" not in mine:
                raise ValueError(f"the Korean notebook has no text with the id {cell['id']!r}")
            cell = cell | {"source": mine["source"]}
        elif "alt" in cell["metadata"]:
            cell = cell | {"metadata": cell["metadata"] | {"alt": mine["metadata"].get("alt", "")}}
        cells.append(cell)
    return english | {"cells": cells}


def describe(notebook: dict[str, Any]) -> None:
    """Write a cell's description where programs look for it: at each of its pictures."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            for kind in output.get("data", {}):
                if kind.startswith("image/"):
                    output["metadata"] = {kind: {"alt": cell["metadata"].get("alt", "")}}


def written(path: Path, address: str | None) -> str:
    """The text of a notebook as it should be."""
    notebook = json.loads(path.read_text("utf-8"))
    if path.name.endswith(".ko.ipynb"):
        english = path.with_name(path.name.replace(".ko.", "."))
        notebook = in_korean(json.loads(written(english, address)), notebook)
    put_install(notebook, path.name, address)
    describe(notebook)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        text = written(path, repository())
        if text != path.read_text("utf-8"):
            path.write_text(text, "utf-8")
            print(f"written: {path.name}")


if __name__ == "__main__":
    main()
