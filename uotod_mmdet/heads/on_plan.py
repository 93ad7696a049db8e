"""Put a head of another project, a subclass of one of mmdet's, on the whole plan."""

import copyreg
import functools
import sys
from abc import ABCMeta
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any, Optional, Union

from uotod_mmdet.registry import MODELS


def on_plan(head: Optional[type] = None, *, register: bool = False) -> Any:
    """A subclass of ``head`` that trains on the whole plan.

    ``head`` is a subclass of one of mmdet's heads that we have, such as DINOHead or ATSSHead. In the new class our head
    stands between ``head`` and mmdet's, so that ``super().loss_by_feat(...)`` of ``head`` reaches ours::

        CoDINOHead = on_plan(projects.CO_DETR.codetr.CoDINOHead)


        @mmdet.registry.MODELS.register_module()
        @on_plan
        class MyHead(mmdet.models.ATSSHead): ...  # with super(), since super(MyHead, self) would find itself

    What ``head`` overrides stays in effect. So it must not compute the losses that the plan weighs all by itself. For
    each method of its own:

    - ``loss`` and the methods that put the losses on the plan (``plan_methods`` of our head: ``loss_by_feat``, and in
      the DETR family ``loss_by_feat_single``) must hand on to ``super()`` or call the next of these methods;
    - methods that our head does not call (``plan_bypasses``: ``get_targets`` and its like) must not be overridden.

    This is read off the names in the method's code; a head that hands on in a way that does not show there is refused,
    too, and can be put on the plan by hand: ``class MyHead(Theirs, uotod_mmdet.heads.DINOHead)``. A DETR-like head with
    a ``loss_by_feat_single`` of its own trains layer by layer, see :meth:`DETRHead.loss_by_feat`; all others keep our
    matching of all layers as one batch.

    Args:
        head: The class. None: return a decorator.
        register: Whether to register the new class in our registry, for ``type='uotod_mmdet.<name>'``.

    Returns:
        The new class, of the same name; the same one for the same ``head``. For a head of mmdet's, ours.

    Raises:
        TypeError: If ``head`` is not a class.
        ValueError: If no head of ours fits, or a method of ``head`` would take the losses off the plan.
    """
    if head is None:
        return functools.partial(on_plan, register=register)
    if not isinstance(head, type):
        raise TypeError(f'on_plan puts a class of a head on the plan, got {head!r} of type {type(head).__name__}')
    made = _made(head)
    if register and MODELS.module_dict.get(head.__name__) is not made:
        if head.__name__ in MODELS.module_dict:
            raise ValueError(
                f'uotod_mmdet has a head {head.__name__} already: give {_path(head)} another name, or register '
                "on_plan(...) in mmdet's MODELS."
            )
        MODELS.register_module(name=head.__name__, module=made)
    return made


class _OnPlan(ABCMeta):
    """Class of the classes that :func:`on_plan` makes, by which pickle knows them."""


def _pickled(made: type) -> Union[str, tuple[Callable, tuple[type]]]:
    """By its name where a decorator put the class in the place of the head's, else by the head."""
    found: Any = sys.modules.get(made.__module__)
    for name in made.__qualname__.split('.'):
        found = getattr(found, name, None)
    return made.__qualname__ if found is made else (on_plan, (made.__mro__[1],))


copyreg.pickle(_OnPlan, _pickled)  # type: ignore[arg-type]


@functools.cache
def _made(head: type) -> type:
    ours = _our_head(head)
    if head in ours.__mro__:
        return ours
    _check_methods(head, ours)
    names = dict(
        __module__=head.__module__,
        __qualname__=head.__qualname__,
        __doc__=f'{head.__name__}, trained on the whole plan; see :class:`~uotod_mmdet.heads.{ours.__name__}`.',
    )
    return _OnPlan(head.__name__, (head, ours), names)


def _our_head(head: type) -> Any:
    """Our class of the nearest head of mmdet's among ``head`` and its bases."""
    ours = _our_heads()
    if any(cls in head.__mro__ for cls in ours.values()):
        raise ValueError(
            f'on_plan: {_path(head)} has a head of uotod_mmdet among its bases and trains on the plan already.'
        )
    for base in head.__mro__:
        if base in ours:
            return ours[base]
    raise ValueError(
        f'on_plan: {_path(head)} is not a subclass of a head of mmdet that trains on the plan, which are '
        f'{", ".join(sorted(base.__name__ for base in ours))}.'
    )


def _our_heads() -> dict[type, Any]:
    """Our heads by mmdet's of the same name."""
    MODELS.import_from_location()
    found = {}
    for cls in MODELS.module_dict.values():
        if isinstance(cls, type) and hasattr(cls, 'plan_methods') and cls.__module__.startswith('uotod_mmdet.'):
            for base in cls.__mro__:
                if base.__name__ == cls.__name__ and base.__module__.startswith('mmdet.'):
                    found[base] = cls
    return found


def _check_methods(head: type, ours: Any) -> None:
    """Refuse a head whose own methods would take the losses off the plan."""
    chain = 'loss', *ours.plan_methods
    between = [cls for cls in head.__mro__ if cls not in ours.__mro__]
    for cls in between:
        for name in ours.plan_bypasses:
            if name in vars(cls):
                raise ValueError(
                    f'on_plan: {_path(cls)} overrides {name}, which training on the plan does not call, so that it '
                    f'would silently have no effect. Take {name} out, or keep {head.__name__} as it is; targets that '
                    'the plan can carry belong into an assigner or a loss.'
                )
        for place, name in enumerate(chain):
            if name not in vars(cls):
                continue
            called = set(_names(vars(cls)[name]))
            if not ({'super', name} <= called or called & set(chain[place + 1 :])):
                onward = ' or '.join([f'super().{name}', *(f'self.{later}' for later in chain[place + 1 :])])
                raise ValueError(
                    f'on_plan: {_path(cls)} overrides {name} and does not call {onward}, so that its losses would '
                    f'silently not be those of the plan. Call it there, or keep {head.__name__} as it is.'
                )


def _names(method: Any) -> Iterator[str]:
    """Names that the code of a method uses, those of functions within it and of what decorators wrap included."""
    method = getattr(method, '__func__', method)
    while method is not None:
        code = getattr(method, '__code__', None)
        if code is not None:
            yield from _names_in(code)
        method = getattr(method, '__wrapped__', None)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _path(cls: type) -> str:
    return f'{cls.__module__}.{cls.__qualname__}'
