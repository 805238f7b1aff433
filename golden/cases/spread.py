"""Numbers for the cases that are too large to choose one by one."""


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


def long(shape, seed, size=1.0):
    """Numbers of 18 bits between -size and size: a sum or a product of fewer bits loses some."""
    return spread(shape, seed, size * 2.0**-17, 2**17)
