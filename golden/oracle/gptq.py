"""GPTQ without a factor of any matrix.

The recursion of the paper subtracts multiples of rows of a Cholesky factor. What it computes has a
meaning that needs none: when the columns in B are rounded, the others, F, stand where they make
the error of the layer least,

    weight_F + H_FF^-1 H_FB (weight_B - output_B)

with the weight as it was given. The next column is rounded from there. So a slip in the factor, in
a sign or in an index cannot be repeated here.
"""

from dataclasses import dataclass
from fractions import Fraction

from .quantize import SCALE_FLOOR, group_size_of


@dataclass
class Rounding:
    """One decision: the nearest integer of `argument = dividend / divisor`."""

    dividend: Fraction
    divisor: Fraction
    moved: bool
    low: int
    high: int


def solve(matrix, right):
    """x with matrix @ x = right, by elimination without pivots: the matrix is positive definite."""
    rows = [[*row, b] for row, b in zip(matrix, right, strict=True)]
    for j, pivot in enumerate(rows):
        for other in rows[j + 1 :]:
            factor = other[j] / pivot[j]
            for k in range(j, len(pivot)):
                other[k] -= factor * pivot[k]
    x = [Fraction(0)] * len(rows)
    for j in reversed(range(len(rows))):
        known = sum(rows[j][k] * x[k] for k in range(j + 1, len(rows)))
        x[j] = (rows[j][-1] - known) / rows[j][j]
    return x


def best_rest(hessian, weight, output):
    """The columns behind those of `output`, where they make the error least."""
    done = len(output)
    rest = range(done, len(weight))
    miss = [weight[b] - output[b] for b in range(done)]
    pull = [sum(hessian[f][b] * miss[b] for b in range(done)) for f in rest]
    shift = solve([[hessian[f][k] for k in rest] for f in rest], pull)
    return [weight[f] + s for f, s in zip(rest, shift, strict=True)]


def grid(weights, params, trace):
    """(scale, zero_point): the range includes 0, and is symmetric where that is asked for."""
    maxq = 2 ** params["bits"] - 1
    low, high = min(0, *weights), max(0, *weights)
    if low == high == 0:
        low, high = Fraction(-1), Fraction(1)
    if params["symmetric"]:
        reach = max(-low, high)
        return max(2 * reach / maxq, SCALE_FLOOR), Fraction(2 ** (params["bits"] - 1))
    scale = max((high - low) / Fraction(maxq), SCALE_FLOOR)
    if low != -high:
        trace.append(Rounding(Fraction(-low), scale, trace.moved, 0, maxq))
    return scale, Fraction(round(-low / scale))


class Trace(list):
    """Every rounding, and whether the weights in it were moved by an update."""

    moved = False


def round_row(weight, hessian, order, params, trace):
    """(codes, grids, output) of one row; columns, groups and results are in `order`."""
    maxq, size = 2 ** params["bits"] - 1, group_size_of(params, [weight])
    block_size, static = params.get("block_size", 128), params.get("static_groups", False)
    given = [weight[i] for i in order]
    grids = [None] * (len(weight) // size)
    trace.moved = False
    if static:
        groups = range(len(grids))
        grids = [grid(weight[g * size : (g + 1) * size], params, trace) for g in groups]
    diagonal = all(hessian[j][k] == 0 for j in range(len(order)) for k in range(j))
    codes, output = [], []
    for j, i in enumerate(order):
        g = i // size if static else j // size
        if not static and j % size == 0:
            # The updates of the block that is under way are not in the range.
            begun = j - j % block_size
            seen = best_rest(hessian, given, output[:begun])[j - begun :][:size]
            trace.moved = not diagonal and begun > 0
            grids[g] = grid(seen, params, trace)
        scale, zero_point = grids[g]
        here = best_rest(hessian, given, output)[0]
        moved = not diagonal and j > 0
        trace.append(Rounding(here, scale, moved, -zero_point, maxq - zero_point))
        # Of all steps from zero the nearest; of two, the even one.
        steps = min(
            (Fraction(code) - zero_point for code in range(maxq + 1)),
            key=lambda steps: (abs(steps - here / scale), steps % 2),
        )
        codes.append(int(steps + zero_point))
        output.append(scale * steps)
    return codes, grids, output


def quantize(params, inputs):
    return traced(params, inputs)[0]


def traced(params, inputs):
    """The outputs, and every rounding on the way."""
    weight = [list(row) for row in inputs["weight"]]
    hessian = [list(row) for row in inputs["hessian"]]
    columns = range(len(hessian))
    for i in columns:
        if hessian[i][i] == 0:
            hessian[i][i] = Fraction(1)
            for row in weight:
                row[i] = Fraction(0)
    order = list(columns)
    if params["act_order"]:
        order.sort(key=lambda i: (-hessian[i][i], i))
    mean = sum(hessian[i][i] for i in columns) / len(hessian)
    for i in columns:
        hessian[i][i] += Fraction(params.get("damping", 0.01)) * mean
    ordered = [[hessian[i][k] for k in order] for i in order]
    trace = Trace()
    rows = [round_row(row, ordered, order, params, trace) for row in weight]
    back = [order.index(i) for i in columns]
    outputs = {
        "codes": [[codes[j] for j in back] for codes, _, _ in rows],
        "scale": [[scale for scale, _ in grids] for _, grids, _ in rows],
        "zero_point": [[zero_point for _, zero_point in grids] for _, grids, _ in rows],
        "output": [[output[j] for j in back] for _, _, output in rows],
    }
    if params["act_order"] and not params.get("static_groups", False):
        size = group_size_of(params, weight)
        outputs["group_index"] = [j // size for j in back]
    return outputs, trace
