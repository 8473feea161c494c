"""Hooks of `mkdocs build`: files outside docs/ become pages, and links for a code host become links of the site."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "hierclass/models/imagenet-1k/MODEL_CARD.md": "model-card.md",
}
"""Files of the repository, and the page of the site that each becomes."""

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
_EXTERNAL = re.compile(r"[a-z]+:|#")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository that are pages of the site."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links as a code host needs them into links of the site; links to files that it lacks become plain text."""
    here = page.file.src_uri
    source = next((file for file, name in PAGES.items() if name == here), f"docs/{here}")

    def replaced(link: re.Match[str]) -> str:
        text, target = link.groups()
        if _EXTERNAL.match(target):
            return link[0]
        path, _, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        name = PAGES.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        if name is None:
            if not (ROOT / file).exists():
                raise ValueError(f"{source}: link to {target}, which is no file of the repository")
            return text
        place = posixpath.relpath(name, posixpath.dirname(here) or ".")
        return f"[{text}]({place}{f'#{anchor}' if anchor else ''})"

    return _LINK.sub(replaced, markdown)
