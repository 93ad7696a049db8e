"""Docstrings as Markdown: Sphinx roles such as :class:`HungarianAssigner` become links, and <P, C> is no HTML tag."""

import re
from typing import Any

import griffe

TOKEN = re.compile(r':(?:class|func|meth):`(~?)([\w.]+)`|``.+?``|`[^`]+`|<|::(?=\n\n)', re.DOTALL)


class Roles(griffe.Extension):
    """Rewrite docstrings; a role of what no page has becomes code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of ``obj``."""

        def rewritten(token: re.Match) -> str:
            short, name = token.groups()
            if name is None:
                return {'<': '&lt;', '::': ':'}.get(token[0], token[0])
            path = name if name.startswith('uotod_mmdet.') else _meaning(obj, name)
            shown = name.rsplit('.', 1)[-1] if short else name
            return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'

        if obj.docstring is not None:
            obj.docstring.value = TOKEN.sub(rewritten, obj.docstring.value)


def _meaning(obj: griffe.Object, name: str) -> str:
    """Path of what ``name`` is where ``obj`` is defined."""
    try:
        return obj.resolve(name)
    except griffe.NameResolutionError:
        return name
