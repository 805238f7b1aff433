"""Numbers for the cases that are too large to choose one by one."""

import itertools
import struct


def spread(shape, seed, step=0.125, reach=8):
    """Multiples of `step` between -reach*step and reach*step, in a fixed irregular order."""
    state = seed

    def fill(lengths):
        nonlocal state
        if lengths:
            return [fill(lengths[1:]) for _ in range(lengths[0])]
        state = (state * 1103515245 + 12345) % 2**31
        return ((state >> 12) % (2 * reach + 1) - reach) * step

    return fill(list(shape))


# Ties of a quotient that rounding takes to even, and on which side of them a product with the
# reciprocal has to fall to be rounded the other way.
TIED = [(2.5, 1), (1.5, -1), (4.5, 1), (5.5, -1)]


def beside_reciprocals(rows, groups, group_size, steps):
    """Weights `steps` times their scale, one row for each of `steps`, and scales whose rounded
    reciprocal leads past the quotient: each weight over its scale is exactly that many steps, and
    the product with the reciprocal in f32 is one ulp more, or less where `steps` says so."""

    def f32(value):
        return struct.unpack("f", struct.pack("f", value))[0]

    def error(scale, count):
        product = f32(f32(count * scale) * f32(1.0 / scale))
        return (product > count) - (product < count)

    weight, scales = [], []
    for row in range(rows):
        count, direction = steps[row % len(steps)]
        odd = (float(3 + 2 * (k + 7 * row)) for k in itertools.count())
        fitting = itertools.islice((s for s in odd if error(s, count) == direction), groups)
        scales.append(list(fitting))
        weight.append([count * s for s in scales[-1] for _ in range(group_size)])
    return weight, scales


def long(shape, seed, size=1.0):
    """Numbers of 18 bits between -size and size: a sum or a product of fewer bits loses some."""
    return spread(shape, seed, size * 2.0**-17, 2**17)
