"""Factors before training: the best approximation of a rank, and LoftQ's turns around it.

Singular vectors come from rotating pairs of columns until all are orthogonal (Jacobi's method from
one side) in 80-digit decimals. The result is then held to the definition: orthonormal, descending,
and the matrix again when multiplied out.
"""

from decimal import Decimal
from fractions import Fraction

from .lora import dot, matmul_transposed, transposed
from .precise import NEGLIGIBLE, sqrt
from .quantize import code_range, group_size_of, nearest_code

# Between the 80 digits of the arithmetic and the 60 that are promised.
EQUAL = Decimal(10) ** -65


def singular(matrix):
    """Triples (value, left, right), largest value first, as many as the smaller side has."""
    if len(matrix) < len(matrix[0]):
        return [(value, left, right) for value, right, left in singular(transposed(matrix))]
    columns = transposed(matrix)
    count = len(columns)
    turned = [[Decimal(int(i == j)) for j in range(count)] for i in range(count)]
    size = sqrt(sum(dot(column, column) for column in columns))
    while rotate_pairs(columns, turned, size):
        pass
    triples = []
    for column, right in zip(columns, turned, strict=True):
        value = sqrt(dot(column, column))
        if value <= EQUAL * size:
            triples.append((Decimal(0), [Decimal(0)] * len(column), right))
        else:
            triples.append((value, [element / value for element in column], right))
    triples.sort(key=lambda triple: -triple[0])
    assert_decomposes(matrix, triples, size)
    return triples


def rotate_pairs(columns, turned, size):
    """One sweep over all pairs of columns; whether any pair was not yet orthogonal."""
    moved = False
    for p in range(len(columns)):
        for q in range(p + 1, len(columns)):
            inner = dot(columns[p], columns[q])
            if abs(inner) <= NEGLIGIBLE * size * size:
                continue
            moved = True
            # The angle at which the two turned columns have the inner product 0.
            half = (dot(columns[q], columns[q]) - dot(columns[p], columns[p])) / (2 * inner)
            tangent = 1 / (abs(half) + sqrt(1 + half * half))
            tangent = -tangent if half < 0 else tangent
            cosine = 1 / sqrt(1 + tangent * tangent)
            for pair in (columns, turned):
                pair[p], pair[q] = turn(pair[p], pair[q], cosine, cosine * tangent)
    return moved


def turn(a, b, cosine, sine):
    return (
        [cosine * x - sine * y for x, y in zip(a, b, strict=True)],
        [sine * x + cosine * y for x, y in zip(a, b, strict=True)],
    )


def assert_decomposes(matrix, triples, size):
    """The definition of a singular value decomposition."""
    values = [value for value, _, _ in triples]
    assert values == sorted(values, reverse=True)
    for k, (value, left, right) in enumerate(triples):
        for other_value, other_left, other_right in triples[k:]:
            expected = int(other_right is right)
            assert abs(dot(right, other_right) - expected) <= EQUAL
            if value != 0 and other_value != 0:
                assert abs(dot(left, other_left) - expected) <= EQUAL
    for o, row in enumerate(matrix):
        for i, element in enumerate(row):
            again = sum(value * left[o] * right[i] for value, left, right in triples)
            assert abs(again - element) <= EQUAL * size


def sign_of(left):
    """That of the first element among those of largest magnitude."""
    largest = max(abs(element) for element in left)
    first = next(element for element in left if abs(element) >= largest - EQUAL)
    return -1 if first < 0 else 1


def factors(matrix, rank, lora_scaling):
    """(lora_a, lora_b) with lora_scaling * lora_b @ lora_a the nearest matrix of that rank."""
    lora_a, columns_of_b = [], []
    for value, left, right in singular(matrix)[:rank]:
        root = sign_of(left) * sqrt(value / lora_scaling)
        columns_of_b.append([root * element for element in left])
        lora_a.append([root * element for element in right])
    return lora_a, transposed(columns_of_b)


def update(lora_a, lora_b, lora_scaling):
    """lora_scaling * lora_b @ lora_a"""
    product = matmul_transposed(lora_b, transposed(lora_a))
    return [[lora_scaling * element for element in row] for row in product]


def svd_init(params, inputs):
    lora_scaling = Decimal(params["lora_scaling"])
    lora_a, lora_b = factors(inputs["weight"], params["rank"], lora_scaling)
    return {
        "lora_a": lora_a,
        "lora_b": lora_b,
        "delta_weight": update(lora_a, lora_b, lora_scaling),
    }


def turns(params, inputs):
    """Every turn of LoftQ as a dictionary, with the target that was quantized in it.

    Targets, scales and quantized weights are fractions: the first turn is exact.
    """
    lora_scaling = Decimal(params["lora_scaling"])
    weight = [[Fraction(element) for element in row] for row in inputs["weight"]]
    target = weight
    result = []
    for _ in range(params["iterations"]):
        scale, codes, output = quantized(target, params)
        residual = differences(weight, output)
        lora_a, lora_b = factors(residual, params["rank"], lora_scaling)
        delta_weight = update(lora_a, lora_b, lora_scaling)
        result.append(
            {
                "target": target,
                "residual": residual,
                "scale": scale,
                "codes": codes,
                "output": output,
                "lora_a": lora_a,
                "lora_b": lora_b,
                "delta_weight": delta_weight,
            }
        )
        target = [
            [w - Fraction(d) for w, d in zip(*rows, strict=True)]
            for rows in zip(weight, delta_weight, strict=True)
        ]
    return result


def quantized(target, params):
    """(scale, codes, output): symmetric, the largest magnitude of a group on the last code."""
    _, qmax = code_range(params["bits"])
    size = group_size_of(params, target)
    scale = [
        [
            max(abs(w) for w in row[start : start + size]) / qmax or Fraction(1)
            for start in range(0, len(row), size)
        ]
        for row in target
    ]
    codes = [
        [nearest_code(w / scale[o][i // size], params["bits"]) for i, w in enumerate(row)]
        for o, row in enumerate(target)
    ]
    output = [
        [code * scale[o][i // size] for i, code in enumerate(row)] for o, row in enumerate(codes)
    ]
    return scale, codes, output


def differences(weight, output):
    """weight - output, as decimals."""
    return [
        [decimal_of(w - q) for w, q in zip(*rows, strict=True)]
        for rows in zip(weight, output, strict=True)
    ]


def decimal_of(fraction):
    return Decimal(fraction.numerator) / Decimal(fraction.denominator)


def loftq_init(params, inputs):
    last = turns(params, inputs)[-1]
    as_decimals = {
        name: [[decimal_of(element) for element in row] for row in last[name]]
        for name in ("scale", "output")
    }
    return {
        "codes": last["codes"],
        **as_decimals,
        "lora_a": last["lora_a"],
        "lora_b": last["lora_b"],
        "delta_weight": last["delta_weight"],
    }
