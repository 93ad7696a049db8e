"""Registries of scope ``uotod_mmdet``, children of mmdet's.

mmengine imports this module by itself when a config says ``type='uotod_mmdet.Name'``. A name without the prefix
reaches our classes after :func:`share_with_mmdet`, which ``import uotod_mmdet`` calls.
"""

import difflib
import functools
import importlib
import inspect
import logging
from typing import Any, Optional

import mmdet.registry
import mmengine.registry
import torch
from mmengine.logging import print_log

SCOPE = 'uotod_mmdet'


def keyword_names(cls: type) -> Optional[list[str]]:
    """Keywords that ``cls(...)`` takes, those it hands on to its bases by ``**kwargs`` included; None if unknown."""
    names, open_ended = [], True
    bases: tuple[Any, ...] = cls.__mro__[:-1]  # all but object
    for base in bases:
        if '__init__' not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        # No stop at the first one that takes no **kwargs: with several bases a class may call past it (VFNetHead).
        open_ended &= any(p.kind is p.VAR_KEYWORD for p in parameters)
    return None if open_ended else list(dict.fromkeys(names))


def _name_unknown_arguments(cls: Any) -> None:
    """Make the error of ``cls(...)`` for an unknown keyword list the known ones."""
    init, known = cls.__init__, keyword_names(cls)
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


class Registry(mmengine.registry.Registry):
    """A registry whose errors for unknown names and arguments list the known ones.

    Names with our prefix are ours alone, from every default scope; names without it may be mmdet's.
    """

    def __init__(self, name: str, parent: mmengine.registry.Registry, locations: list[str]) -> None:
        super().__init__(name, parent=parent, scope=SCOPE, locations=locations)
        prefixed = _Prefixed(self)
        parent.children[SCOPE] = prefixed
        # mmengine looks for a prefix among the children of the default scope's registry and of the root only.
        parent.root.children[SCOPE] = prefixed

    def _register_module(self, module: type, *args: Any, **kwargs: Any) -> None:
        super()._register_module(module, *args, **kwargs)
        if inspect.isclass(module):
            _name_unknown_arguments(module)

    def get(self, key: str) -> type:
        """Get the class registered as ``key``: here, and without prefix also in a parent; or at a dotted path.

        Raises:
            KeyError: If there is none; the message lists our names and the closest one.
        """
        found = _found(super(), key)
        if found is None:
            found = _at_path(key)
        if not callable(found):
            ours = sorted(self.module_dict)
            name = key.split('.')[-1]
            theirs = '' if _found(self.parent, name) is None else f" mmdet's is type='mmdet.{name}'."
            raise KeyError(
                f'{key!r} is not in the {self.scope} registry {self.name!r}{_did_you_mean(name, ours)}{theirs} '
                f'Registered there: {", ".join(ours) or "nothing"}.'
            )
        return found

    def build(self, cfg: dict, *args: Any, **kwargs: Any) -> Any:
        """Build what ``cfg`` says; a name that the default scope does not know may be ours or mmdet's."""
        kind = cfg.get('type') if isinstance(cfg, dict) and '_scope_' not in cfg else None
        if isinstance(kind, str):
            with self.switch_scope_and_registry(None) as registry:
                known = registry is self or _found(registry, kind) is not None
            if not known:
                cfg = cfg.copy()
                cfg['type'] = self.get(kind)
        return super().build(cfg, *args, **kwargs)


class _Prefixed(mmengine.registry.Registry):
    """Our registry for other registries, which look names up here after they have removed our prefix."""

    def __init__(self, ours: Registry) -> None:
        super().__init__(ours.name, scope=ours.scope)
        self._ours = ours
        self._module_dict = ours.module_dict

    def get(self, key: str) -> type:
        return self._ours.get(f'{self.scope}.{key}')

    def _search_child(self, scope: str) -> Optional[mmengine.registry.Registry]:
        return self._ours._search_child(scope)


def _at_path(key: str) -> Any:
    """The object at a full path in our package, as mmengine writes classes in configs; or None.

    mmengine's own lookup finds a function instead of the module of the same name (``losses.quality_focal_loss``).
    """
    module, _, name = key.rpartition('.')
    if not module.startswith(f'{SCOPE}.'):
        return None
    try:
        return getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return None


def _found(registry: Any, key: str) -> Any:
    """What ``registry`` knows as ``key``, or None."""
    try:
        return registry.get(key)
    except (RuntimeError, KeyError):  # of mmengine, of ours
        return None


MODELS = Registry('model', parent=mmdet.registry.MODELS, locations=['uotod_mmdet.losses', 'uotod_mmdet.heads'])
TASK_UTILS = Registry(
    'task util', parent=mmdet.registry.TASK_UTILS, locations=['uotod_mmdet.costs', 'uotod_mmdet.assigners']
)
DATASETS = Registry('dataset', parent=mmdet.registry.DATASETS, locations=['uotod_mmdet.datasets'])
HOOKS = Registry('hook', parent=mmdet.registry.HOOKS, locations=['uotod_mmdet.hooks'])


def share_with_mmdet(replace: bool = False) -> list[str]:
    """Register our classes in mmdet's own registries, so that they need no prefix.

    Args:
        replace: Whether a name that mmdet has too (``QualityFocalLoss``, ``HungarianAssigner``) goes to our class. A
            head whose arguments ours refuses and mmdet's takes is then built as mmdet's, with a warning.

    Returns:
        The names that were taken over from mmdet.
    """
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead  # registers mmdet's classes

    def is_head(cls: Optional[type]) -> bool:
        return inspect.isclass(cls) and issubclass(cls, BaseDenseHead)

    replaced = []
    for ours in (MODELS, TASK_UTILS, DATASETS, HOOKS):
        theirs = ours.parent
        ours.import_from_location()
        theirs.import_from_location()
        for name, cls in ours.module_dict.items():
            present = theirs.module_dict.get(name)
            if present is cls or _ours_within(present) is cls or (present is not None and not replace):
                continue
            shared = _ours_or_theirs(cls, present) if is_head(present) else cls
            theirs.register_module(name=name, module=shared, force=True)
            if present is not None:
                replaced.append(name)
    return replaced


def _ours_within(cls: Optional[type]) -> Optional[type]:
    """Our class, if ``cls`` is what :func:`_ours_or_theirs` made of it."""
    return vars(cls).get('ours') if inspect.isclass(cls) else None


def _ours_or_theirs(ours: type, theirs: type) -> type:
    """A class whose instances are ours or, for arguments that only mmdet's takes, mmdet's.

    Our class trains on the plan and refuses arguments that exclude this (samplers, VFNetHead without an assigner). A
    config of mmdet with such arguments must still train.
    """

    def build(cls: type, *args: Any, **kwargs: Any) -> Any:
        if cls is not either:
            return object.__new__(cls)  # of a subclass
        kept_args, kept_kwargs = _copy((args, kwargs))
        state = torch.get_rng_state()
        try:
            return ours(*args, **kwargs)
        except ValueError as refusal:
            torch.set_rng_state(state)
            try:
                instance = theirs(*kept_args, **kept_kwargs)
            except Exception:
                raise refusal from None  # an argument that neither takes, or one of ours
            print_log(
                f"uotod_mmdet.override: built mmdet's {theirs.__name__}, which trains on no plan, since ours cannot "
                f'do what the config says. {refusal}',
                logger='current',
                level=logging.WARNING,
            )
            return instance

    names = dict(__new__=build, __module__=ours.__module__, __doc__=ours.__doc__, ours=ours)
    either = type(ours.__name__, (ours,), names)
    return either


def _copy(config: Any) -> Any:
    """A copy of the dicts and lists of a config, which mmdet's constructors write into; anything else as it is."""
    if isinstance(config, dict):
        copied = config.copy()
        for name, value in config.items():
            copied[name] = _copy(value)
        return copied
    return type(config)(map(_copy, config)) if type(config) in (list, tuple) else config
