"""Round to nearest, and the search of a range."""

from decimal import Decimal
from fractions import Fraction

from .affine import largest_code, nearest_code, weight_of
from .quantize import code_range, group_size_of, raised


def grid_of(low, high, params):
    """(scale, zero point) of the range from low to high, which holds zero."""
    bits = params["bits"]
    _, qmax = code_range(bits)
    if params["symmetric"]:
        absmax = max(-low, high)
        if params.get("convention", "paper") == "gptq":
            scale = 2 * absmax / largest_code(bits)
        else:
            scale = absmax / qmax
        return scale or Fraction(1), Fraction(2 ** (bits - 1))
    scale = (high - low) / largest_code(bits) or Fraction(1)
    # Python rounds fractions to nearest, ties to even.
    return scale, Fraction(round(-low / raised(scale)))


def grids_tried(group, params):
    """(scale, zero point) of every range that the search tries, in its order."""
    low, high = min([*group, Fraction(0)]), max([*group, Fraction(0)])
    steps = params["steps"] if params.get("range", "min_max") == "lp" else 1
    return [grid_of(k * low / steps, k * high / steps, params) for k in range(1, steps + 1)]


def on_grid(group, scale, zero_point, bits):
    codes = [nearest_code(w / raised(scale), zero_point, bits) for w in group]
    return codes, [weight_of(code, scale, zero_point) for code in codes]


def error(group, scale, zero_point, params):
    """sum |w - output|^p"""
    _, output = on_grid(group, scale, zero_point, params["bits"])
    misses = [abs(w - o) for w, o in zip(group, output, strict=True)]
    p = Decimal(params.get("p", 1))
    powers = [(Decimal(m.numerator) / Decimal(m.denominator)) ** p for m in misses if m != 0]
    return sum(powers, Decimal(0))


def best_grid(group, params):
    """The first of least error. The generator checks that it is clear, or tied exactly."""
    tried = grids_tried(group, params)
    if len(tried) == 1:
        return tried[0]
    errors = [error(group, *grid, params) for grid in tried]
    return tried[errors.index(min(errors))]


def quantize(params, inputs):
    weight, size = inputs["weight"], group_size_of(params, inputs["weight"])
    result = {"codes": [], "scale": [], "zero_point": [], "output": []}
    for row in weight:
        groups = [row[start : start + size] for start in range(0, len(row), size)]
        grids = [best_grid(group, params) for group in groups]
        parts = [
            on_grid(group, *grid, params["bits"]) for group, grid in zip(groups, grids, strict=True)
        ]
        result["scale"].append([scale for scale, _ in grids])
        result["zero_point"].append([zero_point for _, zero_point in grids])
        result["codes"].append([code for codes, _ in parts for code in codes])
        result["output"].append([w for _, output in parts for w in output])
    return result
