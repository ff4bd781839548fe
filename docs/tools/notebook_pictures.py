"""Pictures of notebooks, as HTML: each with a text for those who do not see it.

alt_texts.json has them by notebook and by a piece of the code that draws; code is the same in both
languages. A picture that is not there is named by its section.
"""

import json
from html import escape
from pathlib import Path
from typing import Any

TEXTS = json.loads(Path(__file__).with_name("alt_texts.json").read_text("utf-8"))


def with_pictures(path: Path) -> str:
    """A notebook whose pictures are HTML: nbconvert leaves out GIFs, and alt texts of PNGs."""
    content = json.loads(path.read_text("utf-8"))
    name, _, language = path.stem.partition(".")
    section, count = "", 0
    for cell in content["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            for line in source.splitlines():
                if line.startswith("#"):
                    section, count = line.strip("# "), 0
        texts = _texts(name, language or "en", source)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for kind in [kind for kind in data if kind.startswith("image/")]:
                count += 1
                text = escape(next(texts, f"{section} ({count})"))
                picture = "".join(data.pop(kind)).replace("\n", "")  # nbformat may have it in lines
                data["text/html"] = f'<img alt="{text}" src="data:{kind};base64,{picture}">'
    return json.dumps(content)


def _texts(name: str, language: str, source: str) -> Any:
    """Those of a cell's pictures, in their order."""
    for entry in TEXTS.get(name, []):
        if entry["code"] in source:
            return iter(entry[language])
    return iter(())
