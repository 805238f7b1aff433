"""Unsigned grids with a zero point."""

from .quantize import group_size_of, raised


def largest_code(bits):
    """2^bits - 1"""
    return 2**bits - 1


def nearest_code(quotient, zero_point, bits):
    """The code whose distance from the zero point is nearest to the quotient.

    Of two equally near it is the one at an even distance, whatever the parity of the code.
    """
    codes = range(largest_code(bits) + 1)
    return min(
        codes, key=lambda code: (abs(quotient - (code - zero_point)), (code - zero_point) % 2)
    )


def weight_of(code, scale, zero_point):
    """scale * (code - zero_point), with the scale raised to its floor"""
    return raised(scale) * (code - zero_point)


def weights(inputs, group_size):
    """The matrix that the codes stand for."""
    return [
        [
            weight_of(
                code, inputs["scale"][o][i // group_size], inputs["zero_point"][o][i // group_size]
            )
            for i, code in enumerate(row)
        ]
        for o, row in enumerate(inputs["codes"])
    ]


def quantize(params, inputs):
    weight, size = inputs["weight"], group_size_of(params, inputs["weight"])
    codes = []
    for o, row in enumerate(weight):
        codes.append([])
        for i, element in enumerate(row):
            scale, zero_point = inputs["scale"][o][i // size], inputs["zero_point"][o][i // size]
            codes[o].append(nearest_code(element / raised(scale), zero_point, params["bits"]))
    return {"codes": codes}


def dequantize(params, inputs):
    return {"output": weights(inputs, group_size_of(params, inputs["codes"]))}
