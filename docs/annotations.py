"""A plug-in of griffe that shows the types of settings without what only the command line needs."""

from __future__ import annotations

from typing import Any

from griffe import Attribute, Expr, ExprSubscript, ExprTuple, Extension


class PlainTypes(Extension):
    """Replace `Annotated[T, ...]` by `T` in the attributes of classes, and thereby in the parameters of dataclasses."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Change the annotation of an attribute when it is read from the source."""
        attr.annotation = _plain(attr.annotation)


def _plain(annotation: Expr | str | None) -> Expr | str | None:
    if isinstance(annotation, ExprSubscript) and str(annotation.left) == "Annotated":
        return annotation.slice.elements[0] if isinstance(annotation.slice, ExprTuple) else annotation.slice
    return annotation
