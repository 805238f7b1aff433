"""Cases of the update before training.

Matrices with a rational answer are sums k * left * right^T with `left` and `right` columns of
orthogonal matrices of Pythagorean numbers: [[3, -4], [4, 3]] / 5 and
[[2, 3, 6], [3, -6, 2], [6, 2, -3]] / 7. The singular values, 25 k or 35 k, are squares.
"""

import math

from case_text import GoldenFile, case

from .spread import spread

REFUSED = {
    "rank_range": "a rank that is 0 or has no singular value, cut or padded in silence",
    "scaling_range": "a root of a negative number, or a division by zero",
    "non_finite": "a NaN that a decomposition spreads or loses",
}
SVD_NOTES = {
    "square_root": "the whole singular value in one factor",
    "scaling": "lora_scaling left out, multiplied in, or divided out of one factor twice",
    "sign": "the signs that a library happens to return",
    "order": "singular values in ascending order, or the last ones kept",
    "truncation": "a product of another rank, or singular vectors of a truncated matrix",
    "transposed": "left and right vectors exchanged, or a right factor that is transposed twice",
    "rank_deficient": "a factor that is not zero beside a singular value of zero",
    "odd_size": "a shape that only square or tall matrices fit",
    **REFUSED,
}
LOFTQ_NOTES = {
    "residual": "factors of the weight in place of what quantization lost",
    "turns": "a first turn that already subtracts factors, or one turn too many or too few",
    "pair": "codes of one turn beside the factors of another",
    "scaling": "lora_scaling left out of the product that is subtracted, or of the factors",
    "min_max": "a scale of another rule, or kept from the first turn",
    "tie": "round half away from zero",
    "group_index": "the scale of another group",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "nothing_lost": "a division by zero where the weight is on its grid",
    "grid_width": "a range hard-coded for one width",
    "turns_range": "no turn at all, answered by zeros",
    "group_divides": "a group that crosses a row, or a silent fallback to one group per row",
    "quantizer_name": "an unknown quantizer replaced by a default in silence",
    **REFUSED,
}

FIVE = [[3, -4], [4, 3]]
FIVE_TURNED = [[4, -3], [3, 4]]
SEVEN = [[2, 3, 6], [3, -6, 2], [6, 2, -3]]


def composed(left, right, sizes):
    """sum over k of sizes[k] * column k of left * column k of right, transposed"""
    return [
        [
            float(sum(size * left[o][k] * right[i][k] for k, size in enumerate(sizes)))
            for i in range(len(right))
        ]
        for o in range(len(left))
    ]


SQUARE = composed(FIVE, FIVE_TURNED, [4, 1])
TALL = composed(SEVEN, FIVE, [140, 35])
WIDE = composed(FIVE, SEVEN, [140, 35])


def svd(id, flags, weight, rank, lora_scaling=1.0, error=None, remark=None):
    params = {"rank": rank, "lora_scaling": lora_scaling}
    return case(id, flags, params, weight=weight, error=error, remark=remark)


SVD = [
    svd(
        "two_axes",
        "scaling order",
        [[0.0, -36.0], [1.0, 0.0]],
        1,
        4.0,
        remark="singular values 36 and 1; sqrt(36 / 4) = 3",
    ),
    svd(
        "pythagorean_rank_one",
        "square_root truncation",
        SQUARE,
        1,
        remark="singular values 100 and 25, left (3, 4) / 5, right (4, 3) / 5",
    ),
    svd("pythagorean_full_rank", "square_root sign", SQUARE, 2, remark="delta_weight is weight"),
    svd("scaling_a_quarter_doubles_both", "scaling", SQUARE, 2, 0.25),
    svd("scaling_two_is_alpha_over_rank", "scaling", SQUARE, 1, 2.0),
    svd("tall", "transposed odd_size", TALL, 2, remark="singular values 4900 and 1225"),
    svd("wide", "transposed odd_size", WIDE, 2, remark="singular values 4900 and 1225"),
    svd("tall_rank_one", "truncation transposed", TALL, 1),
    svd(
        "three_by_three_middle_rank",
        "truncation order",
        composed(SEVEN, SEVEN, [4, 16, 1]),
        2,
        remark="singular values 784, 196 and 49, given in another order",
    ),
    svd(
        "negative_of_it",
        "sign",
        [[-element for element in row] for row in SQUARE],
        2,
        remark="lora_b as before, lora_a negated",
    ),
    svd("one_by_one_negative", "sign odd_size", [[-9.0]], 1, remark="3 * -3"),
    svd("one_row", "odd_size sign", [[-3.0, 0.0, -4.0]], 1, remark="lora_b = sqrt(5)"),
    svd("one_column", "odd_size sign", [[-3.0], [0.0], [-4.0]], 1, remark="lora_a = -sqrt(5)"),
    svd(
        "outer_product_at_rank_two",
        "rank_deficient",
        composed([[3], [4]], [[4], [3]], [1]),
        2,
        remark="singular values 25 and 0: the second pair is zero",
    ),
    svd("zero_matrix", "rank_deficient", [[0.0, 0.0], [0.0, 0.0]], 1),
    svd("five_by_three", "odd_size square_root", spread([5, 3], seed=41), 2, 0.5),
    svd("four_by_six", "odd_size truncation", spread([4, 6], seed=42), 3, 2.0),
    svd("rank_zero", "rank_range", SQUARE, 0, error="rank"),
    svd("rank_above_the_smaller_side", "rank_range", TALL, 3, error="rank"),
    svd("scaling_zero", "scaling_range", SQUARE, 1, 0.0, error="lora_scaling"),
    svd("scaling_negative", "scaling_range", SQUARE, 1, -1.0, error="lora_scaling"),
    svd("nan", "non_finite", [[1.0, math.nan]], 1, error="weight"),
]


def loftq(id, flags, weight, *, error=None, remark=None, **params):
    defaults = {"rank": 1, "iterations": 1, "lora_scaling": 1.0, "bits": 4}
    return case(id, flags, {**defaults, **params}, weight=weight, error=error, remark=remark)


HAND = [[3.5, 1.125]]
LAYER = spread([4, 6], seed=53, step=2.0**-10, reach=1500)

LOFTQ = [
    loftq(
        "by_hand",
        "residual scaling",
        HAND,
        lora_scaling=0.5,
        remark="scale 0.5, codes 7 and 2, lost 0.125 = 0.5 * 0.5 * 0.5",
    ),
    loftq("by_hand_again", "turns pair", HAND, lora_scaling=0.5, iterations=3),
    loftq(
        "exact_ties",
        "tie min_max",
        [[7.0, 2.5, -1.5, 0.5], [0.25, -1.25, 3.5, 0.75]],
        rank=2,
        remark="scales 1 and 0.5: codes 7 2 -2 0 and 0 -2 7 2",
    ),
    loftq("on_its_grid", "nothing_lost", [[7.0, -3.0], [1.5, 3.5]], iterations=2),
    loftq("zero_weight", "nothing_lost min_max", [[0.0, 0.0]], iterations=2),
    loftq("one_turn", "residual min_max", LAYER, rank=2),
    loftq("two_turns", "turns pair", LAYER, rank=2, iterations=2),
    loftq("five_turns", "turns pair", LAYER, rank=1, iterations=5, bits=3),
    loftq("scaling_two", "scaling turns", LAYER, rank=2, iterations=3, lora_scaling=2.0),
    loftq("groups", "group_index", LAYER, rank=2, iterations=2, group_size=3),
    loftq("row_groups", "one_group_per_row min_max", LAYER, rank=1, iterations=2, bits=2),
    loftq("eight_bits", "grid_width", LAYER, rank=3, iterations=2, bits=8, group_size=2),
    loftq("two_bits", "grid_width turns", LAYER, rank=3, iterations=4, bits=2, group_size=3),
    loftq("named_uniform", "quantizer_name", HAND, quantizer="uniform"),
    loftq("unknown_quantizer", "quantizer_name", HAND, quantizer="ternary", error="quantizer"),
    loftq("no_turns", "turns_range", HAND, iterations=0, error="iterations"),
    loftq("rank_above_the_smaller_side", "rank_range", HAND, rank=2, error="rank"),
    loftq("scaling_zero", "scaling_range", HAND, lora_scaling=0.0, error="lora_scaling"),
    loftq("group_size_does_not_divide", "group_divides", LAYER, group_size=4, error="group_size"),
    loftq("infinity", "non_finite", [[1.0, math.inf]], error="weight"),
]

FILES = [
    GoldenFile("lora/svd_init.toml", "svd_init", SVD_NOTES, SVD),
    GoldenFile("lora/loftq_init.toml", "loftq_init", LOFTQ_NOTES, LOFTQ),
]
