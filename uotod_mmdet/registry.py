"""Registries of scope ``uotod_mmdet``, children of mmdet's.

mmengine imports this module by itself when a config says ``type='uotod_mmdet.Name'``. A name without the prefix
reaches our classes after :func:`share_with_mmdet`, which ``import uotod_mmdet`` calls.
"""

import difflib
import functools
import importlib
import inspect
from typing import Any, Optional

import mmdet.registry
import mmengine.registry

SCOPE = 'uotod_mmdet'


def _keyword_names(cls: type) -> Optional[list[str]]:
    """Keywords that ``cls(...)`` takes, those it hands on to its bases by ``**kwargs`` included; None if unknowable."""
    names, open_ended = [], True
    for base in cls.__mro__[:-1]:  # all but object
        if '__init__' not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        # No stop at the first one that takes no **kwargs: with several bases a class may call past it (VFNetHead).
        open_ended &= any(p.kind is p.VAR_KEYWORD for p in parameters)
    return None if open_ended else list(dict.fromkeys(names))


def _name_unknown_arguments(cls: type) -> None:
    """Make ``cls(...)`` answer a misspelt keyword with the names it does take."""
    init, known = cls.__init__, _keyword_names(cls)
    if known is None:
        return

    @functools.wraps(init)
    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name not in known and type(self) is cls:
                raise TypeError(
                    f'{cls.__name__} has no argument {name!r}{_did_you_mean(name, known)} It takes: {", ".join(known)}.'
                )
        init(self, *args, **kwargs)

    cls.__init__ = checked_init


def _did_you_mean(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f'; did you mean {close[0]!r}?' if close else '.'


def _class_at(path: str) -> Optional[type]:
    """The class of this path; mmengine's own look-up fails where a function is named as its module is."""
    module, _, name = path.rpartition('.')
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


class Registry(mmengine.registry.Registry):
    """A registry that answers a name or an argument it does not know with the ones it does."""

    def _register_module(self, module: type, *args: Any, **kwargs: Any) -> None:
        super()._register_module(module, *args, **kwargs)
        if inspect.isclass(module):
            _name_unknown_arguments(module)

    def get(self, key: str) -> Optional[type]:
        """Get the class registered as ``key`` here or in a parent.

        Raises:
            KeyError: If there is none; the message lists our names and the closest one.
        """
        try:
            found = super().get(key)
        except RuntimeError:
            found = None
        if found is None and '.' in key:
            # The path of a class, as mmengine writes it for a class in a config; a parent takes our scope off it.
            found = _class_at(key) or _class_at(f'{self.scope}.{key}')
        if found is None:
            ours = sorted(self.module_dict)
            name = key.split('.')[-1]
            raise KeyError(
                f'{key!r} is not in the {self.scope} registry {self.name!r}{_did_you_mean(name, ours)} '
                f'Registered there: {", ".join(ours) or "nothing"}.'
            )
        return found


MODELS = Registry(
    'model', parent=mmdet.registry.MODELS, scope=SCOPE, locations=['uotod_mmdet.losses', 'uotod_mmdet.heads']
)
TASK_UTILS = Registry(
    'task util',
    parent=mmdet.registry.TASK_UTILS,
    scope=SCOPE,
    locations=['uotod_mmdet.costs', 'uotod_mmdet.assigners'],
)
DATASETS = Registry('dataset', parent=mmdet.registry.DATASETS, scope=SCOPE, locations=['uotod_mmdet.datasets'])
HOOKS = Registry('hook', parent=mmdet.registry.HOOKS, scope=SCOPE, locations=['uotod_mmdet.hooks'])


def share_with_mmdet(replace: bool = False) -> list[str]:
    """Register our classes in mmdet's own registries, so that they need no prefix.

    Args:
        replace: Whether a name that mmdet has too (``QualityFocalLoss``, ``HungarianAssigner``) goes to our class.

    Returns:
        The names that were taken over from mmdet.
    """
    replaced = []
    for ours in (MODELS, TASK_UTILS, DATASETS, HOOKS):
        theirs = ours.parent
        ours.import_from_location()
        theirs.import_from_location()
        for name, cls in ours.module_dict.items():
            present = theirs.module_dict.get(name)
            if present is cls or (present is not None and not replace):
                continue
            theirs.register_module(name=name, module=cls, force=True)
            if present is not None:
                replaced.append(name)
    return replaced
