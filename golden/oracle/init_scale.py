"""The rules that choose scale and offset before training."""

from decimal import Decimal
from fractions import Fraction

from .precise import sqrt_rational
from .quantize import code_range, group_size_of, nearest_code


def scale_offset(group, params):
    """(scale, offset) of one group; a group that gives scale 0 gets 1, and code 0 reproduces it."""
    scale, offset = RULES[params["rule"]](group, params)
    if scale == 0:
        return Fraction(1), max(group) if params["rule"] == "asymmetric" else Fraction(0)
    return scale, offset


def l4q(group, params):
    """scale = max(|min / qmin|, |max / qmax|)"""
    qmin, qmax = code_range(params["bits"])
    return max(abs(min(group) / qmin), abs(max(group) / qmax)), Fraction(0)


def lsq(group, params):
    """scale = 2 * mean(|w|) / sqrt(qmax)"""
    _, qmax = code_range(params["bits"])
    mean = sum(abs(w) for w in group) / len(group)
    return 2 * mean / sqrt_rational(Fraction(qmax)), Fraction(0)


def lsq_plus(group, params):
    """scale = max(|mean - 3 sigma|, |mean + 3 sigma|) / 2^(bits-1); sigma with n - 1"""
    mean = sum(group) / len(group)
    spread = sum((w - mean) ** 2 for w in group)
    sigma = sqrt_rational(spread / (len(group) - 1)) if len(group) > 1 else 0
    reach = max(abs(mean - 3 * sigma), abs(mean + 3 * sigma))
    return reach / 2 ** (params["bits"] - 1), Fraction(0)


def symmetric(group, params):
    """scale = max(|w|) / 2^(bits-1)"""
    return max(abs(w) for w in group) / 2 ** (params["bits"] - 1), Fraction(0)


def asymmetric(group, params):
    """scale = (max - min) / (qmax - qmin), offset = max - scale * qmax"""
    qmin, qmax = code_range(params["bits"])
    scale = (max(group) - min(group)) / (qmax - qmin)
    return scale, max(group) - scale * qmax


def min_max(group, params):
    """scale = max(|w|) / qmax"""
    _, qmax = code_range(params["bits"])
    return max(abs(w) for w in group) / qmax, Fraction(0)


def lit_gpt(group, params):
    """scale = max(|w|) / 7 at 4 bits, max(|w|) / 2^(bits-1) at every other width"""
    divisor = 7 if params["bits"] == 4 else 2 ** (params["bits"] - 1)
    return max(abs(w) for w in group) / divisor, Fraction(0)


def lp(group, params):
    """scale = k * absmax / steps / qmax for the first k of 1..steps with the least error.

    error = sum |w - fake_quantize(w)|^p. The generator checks that the winner is clear, or equal to
    a later k exactly.
    """
    errors = lp_errors(group, params)
    best = min(range(len(errors)), key=lambda index: (errors[index][0], index))
    return errors[best][1], Fraction(0)


def lp_errors(group, params):
    """(error, scale) for k = 1..steps."""
    _, qmax = code_range(params["bits"])
    absmax, steps, p = max(abs(w) for w in group), params["steps"], Decimal(params["p"])
    if absmax == 0:
        return [(Decimal(0), Fraction(0))]
    result = []
    for k in range(1, steps + 1):
        scale = k * absmax / steps / qmax
        misses = [abs(w - scale * nearest_code(w / scale, params["bits"])) for w in group]
        powers = [(Decimal(m.numerator) / Decimal(m.denominator)) ** p for m in misses if m != 0]
        result.append((sum(powers, Decimal(0)), scale))
    return result


RULES = {
    "l4q": l4q,
    "lsq": lsq,
    "lsq_plus": lsq_plus,
    "symmetric": symmetric,
    "asymmetric": asymmetric,
    "min_max": min_max,
    "lit_gpt": lit_gpt,
    "lp": lp,
}


def init_scale(params, inputs):
    weight = inputs["weight"]
    size = group_size_of(params, weight)
    pairs = [
        [scale_offset(row[start : start + size], params) for start in range(0, len(row), size)]
        for row in weight
    ]
    return {
        "scale": [[scale for scale, _ in row] for row in pairs],
        "offset": [[offset for _, offset in row] for row in pairs],
    }
