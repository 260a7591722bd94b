"""Put pages of the repository on the site, and check links that leave docs/.

README.md and its like are written for a reader of the repository. The site has a copy of each, in which links
lead to pages of the site. A link to another file of the repository becomes its plain text; if that file does
not exist, the build fails.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
COPIES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "dmtl/models/builtin/six-tasks/README.md": "six-tasks.md",
    "kernels/README.md": "operators.md",
    "kernels/triton/resources.md": "triton-resources.md",
    "benchmarks/README.md": "benchmarks.md",
}
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)]*)?\)")
log = logging.getLogger("mkdocs.hooks.dmtl")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, page in COPIES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    origin = {page: source for source, page in COPIES.items()}
    name = page.file.src_uri
    folder = posixpath.dirname(origin.get(name, f"docs/{name}"))

    def relink(match: re.Match) -> str:
        target = match["target"]
        if re.match(r"[a-z]+:|/", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if not (ROOT / path).exists():
            log.warning("%s: link to %s, which does not exist", origin.get(name, name), target)
        on_site = COPIES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if on_site is None:
            return match["text"]
        relative = posixpath.relpath(on_site, posixpath.dirname(name) or ".")
        return f"{match['picture']}[{match['text']}]({relative}{match['anchor'] or ''})"

    # code stays as it is
    parts = re.split(r"(^```.*?^```$|`[^`\n]+`(?!\]))", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("`") else LINK.sub(relink, part) for part in parts)
