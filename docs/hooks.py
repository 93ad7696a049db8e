"""What mkdocs does not do by itself to build the manual from the files of the repository.

- ``<!-- include FILE: HEADING -->`` on a line of its own becomes that section of a Markdown file of the repository,
  without its heading; with ``| table`` or ``| python`` before ``-->`` its first table or block of Python alone.
- CONTRIBUTING.md, CHANGELOG.md and the notebooks become pages.
- Links to other files of the repository work: the site has a copy of what is linked.
"""

import os
import re
from pathlib import Path
from typing import Any, Optional

import nbconvert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGES = {'README.md': 'index.md', 'CONTRIBUTING.md': 'contributing.md', 'CHANGELOG.md': 'changelog.md'}
INCLUDE = re.compile(r'^<!-- include (\S+): (.+?)(?: \| (table|python))? -->$', re.MULTILINE)
PARTS = {'table': r'^(\|[^\n]*\n?)+', 'python': r'^```python\n.*?^```$'}
LINK = re.compile(r'\[([^\[\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/ or are no Markdown."""
    for source in ('CONTRIBUTING.md', 'CHANGELOG.md'):
        text = (ROOT / source).read_text(encoding='utf-8')
        files.append(File.generated(config, PAGES[source], content=_relink(text, ROOT, DOCS, files, config)))
    for notebook in sorted((DOCS / 'notebooks').glob('*.ipynb')):
        text, resources = nbconvert.MarkdownExporter().from_filename(str(notebook))
        folder = f'notebooks/{notebook.stem}_files'
        for name, data in resources['outputs'].items():
            text = text.replace(f']({name})', f']({notebook.stem}_files/{name})')
            files.append(File.generated(config, f'{folder}/{name}', content=data))
        files.append(File.generated(config, f'notebooks/{notebook.stem}.md', content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in what is included, and make links to files of the repository work."""
    folder = (DOCS / page.file.src_uri).parent
    if page.file.generated_by is None:
        markdown = _relink(markdown, folder, folder, files, config)

    def included(match: re.Match) -> str:
        path, heading, part = match.groups()
        text = section((ROOT / path).read_text(encoding='utf-8'), heading, part)
        return _relink(text, (ROOT / path).parent, folder, files, config)

    return INCLUDE.sub(included, markdown)


def section(text: str, heading: str, part: Optional[str] = None) -> str:
    """The lines below ``heading`` (such as '## Losses') up to the next heading of its level or above.

    Args:
        text: Markdown.
        heading: A line of it.
        part: 'table' or 'python' for the first of these alone.

    Raises:
        PluginError: If the text has no such heading, or nothing of that kind below it.
    """
    start = re.search(rf'^{re.escape(heading)}$', text, re.MULTILINE)
    if start is None:
        raise PluginError(f'include: there is no heading {heading!r}')
    level = len(heading.split()[0])
    end = re.compile(rf'^#{{1,{level}}} ', re.MULTILINE).search(text, start.end())
    found = text[start.end() : end and end.start()].strip()
    if part is not None:
        match = re.search(PARTS[part], found, re.MULTILINE | re.DOTALL)
        if match is None:
            raise PluginError(f'include: there is no {part} below the heading {heading!r}')
        found = match[0]
    return found


def _relink(text: str, base: Path, folder: Path, files: Files, config: Any) -> str:
    """Links of ``text``, relative to ``base``, as a page in ``folder`` of the site needs them."""

    def link(match: re.Match) -> str:
        shown, path, anchor = match.groups()
        target = Path(os.path.normpath(base / path))
        inside = os.path.relpath(target, ROOT)
        if target.is_dir():
            return shown  # the site has no page of a folder
        if not target.is_file():
            return match[0]  # mkdocs warns
        if inside in PAGES:
            target = DOCS / PAGES[inside]
        elif target.suffix == '.ipynb':
            target = target.with_suffix('.md')
        elif not target.is_relative_to(DOCS):
            name = f'repository/{inside}'
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, content=target.read_bytes()))
            target = DOCS / name
        return f'[{shown}]({os.path.relpath(target, folder)}{anchor or ""})'

    return LINK.sub(link, text)
