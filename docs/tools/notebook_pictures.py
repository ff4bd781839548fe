"""Pictures of notebooks as HTML: nbconvert leaves out GIFs, and the descriptions of PNGs."""

import json
from html import escape
from pathlib import Path


def with_pictures(path: Path) -> str:
    """A notebook whose pictures are HTML, each with its description.

    That is the ``alt`` in the metadata of its output; without one, the title of the section.
    """
    content = json.loads(path.read_text("utf-8"))
    section, count = "", 0
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            for line in "".join(cell["source"]).splitlines():
                if line.startswith("#"):
                    section, count = line.strip("# "), 0
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            for kind in [kind for kind in data if kind.startswith("image/")]:
                count += 1
                said = output.get("metadata", {}).get(kind, {}).get("alt")
                text = escape(said or f"{section} ({count})")
                picture = "".join(data.pop(kind)).replace("\n", "")  # nbformat may have it in lines
                data["text/html"] = f'<img alt="{text}" src="data:{kind};base64,{picture}">'
    return json.dumps(content)
