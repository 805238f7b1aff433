"""Derivatives of a computation on scalars, exact in the arithmetic of the scalars.

A `Variable` remembers which variables it was computed from and its partial derivative with respect
to each of them. `gradients` walks back from a result and adds up the chain rule.
"""

import itertools
from decimal import Decimal

from . import precise

_clock = itertools.count()


class Variable:
    """A Fraction or Decimal with its history: pairs (variable, partial derivative)."""

    __slots__ = ("born", "history", "value")

    def __init__(self, value, history=()):
        self.value = value
        self.history = history
        self.born = next(_clock)

    def __add__(self, other):
        other = lift(other)
        return Variable(self.value + other.value, ((self, 1), (other, 1)))

    def __sub__(self, other):
        other = lift(other)
        return Variable(self.value - other.value, ((self, 1), (other, -1)))

    def __mul__(self, other):
        other = lift(other)
        return Variable(self.value * other.value, ((self, other.value), (other, self.value)))

    def __truediv__(self, other):
        # An integer divisor in the arithmetic of the dividend: 1 / 3 must not become a float.
        if not isinstance(other, Variable):
            other = Variable(type(self.value)(other))
        quotient = self.value / other.value
        return Variable(quotient, ((self, 1 / other.value), (other, -quotient / other.value)))

    def __neg__(self):
        return lift(0) - self

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other):
        return lift(other) - self

    def __rtruediv__(self, other):
        return lift(other) / self


def lift(x) -> Variable:
    """A constant as a variable without history."""
    return x if isinstance(x, Variable) else Variable(x)


def value(x):
    return x.value if isinstance(x, Variable) else x


def exp(x):
    """The exponential of a Decimal or of a variable that holds one; the same for those below."""
    if isinstance(x, Decimal):
        return precise.exp(x)
    result = precise.exp(x.value)
    return Variable(result, ((x, result),))


def ln(x):
    if isinstance(x, Decimal):
        return precise.ln(x)
    return Variable(precise.ln(x.value), ((x, 1 / x.value),))


def sqrt(x):
    if isinstance(x, Decimal):
        return precise.sqrt(x)
    root = precise.sqrt(x.value)
    return Variable(root, ((x, 1 / (2 * root)),))


def clamp(x, low, high):
    """To the closed interval; the derivative is 1 on it, ends included, and 0 outside."""
    plain = value(x)
    inside = low <= plain <= high
    clamped = min(max(plain, low), high)
    return Variable(clamped, ((x, 1 if inside else 0),)) if isinstance(x, Variable) else clamped


def gradients(result: Variable, *tensors):
    """d result / d every element, in the shape of each tensor of variables."""
    total = {}
    pending, seen = [result], {id(result)}
    reachable = []
    while pending:
        variable = pending.pop()
        reachable.append(variable)
        for parent, _ in variable.history:
            if id(parent) not in seen:
                seen.add(id(parent))
                pending.append(parent)
    total[id(result)] = 1
    # A variable is younger than everything it was computed from.
    for variable in sorted(reachable, key=lambda variable: variable.born, reverse=True):
        arrived = total.get(id(variable), 0)
        for parent, partial in variable.history:
            total[id(parent)] = total.get(id(parent), 0) + arrived * partial
    return [over(lambda leaf: total.get(id(leaf), 0), tensor) for tensor in tensors]


def over(function, tensor):
    """The function applied to every element of a nested list."""
    if isinstance(tensor, list):
        return [over(function, part) for part in tensor]
    return function(tensor)


def variables(tensor):
    return over(Variable, tensor)


def flat(tensor):
    """The elements of a nested list in row-major order."""
    if isinstance(tensor, list):
        for part in tensor:
            yield from flat(part)
    else:
        yield tensor


def weighted_sum(d_output, output) -> Variable:
    """The scalar whose derivative with respect to `output` is `d_output`."""
    total = lift(0)
    for weight, element in zip(flat(d_output), flat(output), strict=True):
        total = total + element * weight
    return total
