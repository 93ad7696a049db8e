"""Checks of the numbers and switches that a config holds."""

import math
import numbers
from typing import Any, Literal, Optional, overload

from torch import Tensor

LARGEST = 2**31 - 1
"""Largest whole number that is accepted, for example as a number of iterations."""

SIZES = 1e-30, 1e30
"""Smallest and largest absolute value of other nonzero numbers, well inside the range of float32."""


@overload
def number(
    name: str,
    value: Any,
    above: Optional[float] = ...,
    at_least: Optional[float] = ...,
    *,
    whole: Literal[True],
    infinite: bool = ...,
    optional: Literal[False] = ...,
    hint: str = ...,
) -> int: ...


@overload
def number(
    name: str,
    value: Any,
    above: Optional[float] = ...,
    at_least: Optional[float] = ...,
    whole: bool = ...,
    infinite: bool = ...,
    optional: Literal[False] = ...,
    hint: str = ...,
) -> float: ...


@overload
def number(
    name: str,
    value: Any,
    above: Optional[float] = ...,
    at_least: Optional[float] = ...,
    whole: bool = ...,
    infinite: bool = ...,
    optional: bool = ...,
    hint: str = ...,
) -> Optional[float]: ...


def number(
    name: str,
    value: Any,
    above: Optional[float] = None,
    at_least: Optional[float] = None,
    whole: bool = False,
    infinite: bool = False,
    optional: bool = False,
    hint: str = '',
) -> Optional[float]:
    """A number of a config as Python's int or float.

    Args:
        name: The argument, for the message.
        value: Python's or numpy's number, or a tensor of one.
        above: Bound that the number must exceed.
        at_least: Smallest number that is allowed.
        whole: Whether the number must be whole; 1e3 is accepted as 1000.
        infinite: Whether infinity is allowed.
        optional: Whether None, which is then returned, is allowed.
        hint: Text that is added to the message.

    Raises:
        TypeError: If the value is not a number.
        ValueError: If the number is out of range.
    """
    if value is None and optional:
        return None
    given = value
    if getattr(value, 'shape', None) == () and hasattr(value, 'item'):  # numpy's scalars and tensors of no dimension
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f'{name} must be a number{hint}, got {given!r} of type {type(given).__name__}')
    value = int(value) if isinstance(value, numbers.Integral) else float(value)
    if above is not None and not value > above:
        raise ValueError(f'{name} must be {"positive" if above == 0 else f"above {above}"}{hint}, got {given}')
    if at_least is not None and not value >= at_least:
        raise ValueError(f'{name} must be >= {at_least}{hint}, got {given}')
    if math.isnan(value) or (math.isinf(value) and not infinite):
        raise ValueError(f'{name} must be {"a number" if infinite else "finite"}{hint}, got {given}')
    if not whole:
        if value and not math.isinf(value) and not SIZES[0] <= abs(value) <= SIZES[1]:
            raise ValueError(f'{name} must be 0 or of a size between {SIZES[0]} and {SIZES[1]}{hint}, got {given}')
        return float(value)
    if value != int(value) or abs(value) > LARGEST:
        raise ValueError(f'{name} must be a whole number of at most {LARGEST}, got {given}')
    return int(value)


def switch(name: str, value: Any) -> bool:
    """A switch of a config: a bool of Python or numpy, or a tensor of one.

    Raises:
        TypeError: If the value is anything else, such as the string 'False', which would count as true.
    """
    plain = value.item() if isinstance(value, Tensor) or type(value).__module__ == 'numpy' else value
    if not isinstance(plain, bool):
        raise TypeError(f'{name} must be True or False, got {value!r} of type {type(value).__name__}')
    return plain
