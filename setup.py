"""The page that a package index shows: the README, with links that work outside the repository.

README.md links to files of the repository. Where pyproject.toml names a Repository under
[project.urls], these links lead there; else a link becomes the name of its file, and a picture its
description, so that no link is broken. All other settings are in pyproject.toml.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!\w+:|#)([^)\s]+)\)")


def index_page(readme: str, repository: str | None) -> str:
    """The README (Markdown) with links to ``repository``, an address such as GitHub's; or none."""

    def led(match: re.Match[str]) -> str:
        picture, text, path = match.groups()
        if repository:
            return f"{picture}[{text}]({repository}/{'raw' if picture else 'blob'}/HEAD/{path})"
        return text if picture or text == path else f"{text} (`{path}`)"

    return LINK.sub(led, readme)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    setup(
        long_description=index_page(
            (ROOT / "README.md").read_text(encoding="utf-8"),
            project.get("urls", {}).get("Repository"),
        ),
        long_description_content_type="text/markdown",
    )
