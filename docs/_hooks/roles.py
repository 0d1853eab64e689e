"""Docstrings here name other objects as Sphinx does, :class:`~autoperm.Curve`, and have one "Example:".

This writes the first as Markdown code, and the second under the heading that mkdocstrings knows.
"""

import re

from griffe import Extension

ROLE = re.compile(r":(?:attr|class|data|exc|func|math|meth|mod):`(~?)([^`]+)`")
EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)


def markdown(text: str) -> str:
    """Replace roles; a tilde stands for the last name only."""
    text = ROLE.sub(lambda m: f"`{m[2].rpartition('.')[2] if m[1] else m[2]}`", text)
    return EXAMPLE.sub("Examples:", text)


class Roles(Extension):
    """Rewrite every docstring before it is parsed."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
