"""Cases of GPTQ."""

import math

from case_text import GoldenFile, case
from oracle.nf4 import blocks_of

from .spread import spread

NOTES = {
    "compensation": "columns rounded on their own, or an update with the wrong sign or column",
    "plain_rounding": "an update where the inputs have nothing to do with each other",
    "tie": "round half away from zero, or floor(x + 0.5)",
    "range_end": "a code that wraps, or a range that is one code too wide",
    "zero_in_range": "a range that leaves out 0 where all weights have one sign",
    "symmetric_reach": "low left at 0 where no weight is negative: the upper half would clip",
    "zero_point": "a zero point of 2^(bits-1) - 1, or one that is not rounded",
    "degenerate": "0 / 0 for a group without extent",
    "scale_floor": "a scale of 0 for weights of almost nothing",
    "dead_input": "a factor of a matrix with a zero, or a weight that no input reaches left alone",
    "damping": "damping forgotten, added off the diagonal, or a multiple of 1 and not of the mean",
    "group_index": "the grid of another group, or one grid for a row",
    "one_group_per_row": "an absent group_size read as one group per tensor",
    "stale_grid": "a grid inside a block that has the updates of that block",
    "block": "updates that stop at the end of a block",
    "block_default": "a default block size that is less than the row",
    "act_order": "inputs in their own order, or in ascending order of importance",
    "equal_importance": "an order that exchanges inputs of equal importance",
    "inverse_order": "codes or outputs left in the order of rounding",
    "static_groups": "groups of the order in place of groups of inputs, or found on the way",
    "odd_size": "a kernel that handles only whole tiles",
    "definite": "a matrix that has no factor, answered with something",
    "not_symmetric": "one triangle read and the other one not looked at",
    "shape": "a truncated or repeated tensor instead of a refusal",
    "non_finite": "a NaN or an infinity that becomes a code",
    "params_range": "a parameter out of range replaced by a default in silence",
}

TWO = [[2.0, 1.0], [1.0, 2.0]]


def diagonal(*elements):
    return [
        [element if i == k else 0.0 for k in range(len(elements))]
        for i, element in enumerate(elements)
    ]


def products(size, seed):
    """2 / 8 * x^T x of 8 inputs and something on the diagonal: symmetric and definite."""
    x = spread([8, size], seed=seed, step=0.25, reach=6)
    return [
        [
            sum(x[t][i] * x[t][k] for t in range(8)) / 4 + (0.5 if i == k else 0.0)
            for k in range(size)
        ]
        for i in range(size)
    ]


def quantize(id, flags, weight, hessian, bits=4, symmetric=True, error=None, remark=None, **params):
    params = {
        "bits": bits,
        "symmetric": symmetric,
        "damping": 0.0,
        "act_order": False,
        **params,
    }
    params = {name: value for name, value in params.items() if value is not None}
    inputs = {"weight": weight, "hessian": hessian}
    return case(id, flags, params, error=error, remark=remark, **inputs)


def upward(weight, size):
    """Groups turned so that their largest magnitude is positive: on a symmetric grid its opposite
    is -maxq / 2 steps from zero, a tie that the rounding of the scale decides."""
    return [
        [w if max(group) > -min(group) else -w for group in blocks_of(row, size) for w in group]
        for row in weight
    ]


SIX = upward(spread([3, 6], seed=41, step=0.0625, reach=40), 6)
SIX_BY_TWO = upward(SIX, 2)
NINE = upward(spread([2, 9], seed=44, step=0.0625, reach=40), 9)
NINE_BY_THREE = upward(NINE, 3)
H6, H9 = products(6, seed=59), products(9, seed=53)

CASES = [
    quantize(
        "half_of_the_error_comes_over",
        "compensation range_end",
        [[7.5, 0.375]],
        TWO,
        remark="scale 1; 7.5 becomes 7, and 0.375 becomes 0.625 and then 1",
    ),
    quantize(
        "nothing_comes_over",
        "plain_rounding tie",
        [[7.5, 0.5, 1.5, 2.5, -0.5, -1.5, -7.5]],
        diagonal(1.0, 2.0, 4.0, 0.5, 8.0, 1.0, 2.0),
        remark="scale 1: ties go to the even number of steps",
    ),
    quantize(
        "asymmetric_ties",
        "zero_point tie plain_rounding",
        [[-0.5, 2.5, 0.5], [-1.5, 1.5, 0.5]],
        diagonal(1.0, 1.0, 1.0),
        bits=2,
        symmetric=False,
        remark="scale 1: zero points 0.5 and 1.5 become 0 and 2, and -0.5 is 0 steps",
    ),
    quantize(
        "ranges_of_one_sign",
        "zero_in_range range_end",
        [[1.0, 15.0, 8.25], [-15.0, -4.75, -1.0]],
        diagonal(1.0, 1.0, 1.0),
        symmetric=False,
        remark="scale 1, zero points 0 and 15",
    ),
    quantize(
        "symmetric_of_positive_weights",
        "symmetric_reach",
        [[0.75, 7.5, 5.25]],
        diagonal(1.0, 1.0, 1.0),
        remark="scale 1 and zero point 8 as with a negative weight",
    ),
    quantize(
        "a_group_of_zeros",
        "degenerate group_index",
        [[0.0, -0.0, 1.5, -1.0], [3.0, 1.0, 0.0, 0.0]],
        diagonal(1.0, 1.0, 1.0, 1.0),
        group_size=2,
        symmetric=False,
    ),
    quantize(
        "almost_nothing",
        "scale_floor",
        [[2.0**-30, -(2.0**-31)]],
        diagonal(1.0, 1.0),
        remark="scale 1e-8, and both are less than half of it",
    ),
    quantize(
        "an_input_that_never_occurs",
        "dead_input",
        [[7.5, 100.0, 0.375]],
        [[2.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 2.0]],
        remark="its weight is 0 before the range is found",
    ),
    quantize(
        "a_dead_input_counts_in_the_damping",
        "dead_input damping",
        [[6.0, 100.0, 0.75, -2.25]],
        [[2.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 3.0, 0.0], [0.5, 0.0, 0.0, 2.0]],
        damping=0.5,
    ),
    quantize(
        "damping_makes_it_definite",
        "damping",
        [[7.5, 0.75], [3.25, -2.0]],
        [[1.0, 1.0], [1.0, 1.0]],
        damping=0.25,
    ),
    quantize(
        "damping_in_units_of_the_mean",
        "damping",
        [[7.5, 0.359375]],
        TWO,
        damping=1.0,
        remark="a quarter of the error comes over, not a third and not a half: 0.484 is 0",
    ),
    quantize("damping_of_nothing_said", "damping compensation", SIX, H6, damping=None),
    quantize("one_group_per_row", "one_group_per_row compensation odd_size", SIX, H6),
    quantize("asymmetric_row", "zero_point compensation", SIX, H6, bits=3, symmetric=False),
    quantize("eight_bits", "range_end", SIX, H6, bits=8),
    quantize("two_bits", "range_end compensation", SIX, H6, bits=2),
    quantize("groups_of_two_in_one_block", "stale_grid group_index", SIX_BY_TWO, H6, group_size=2),
    quantize(
        "groups_of_two_in_blocks_of_two",
        "stale_grid group_index block",
        SIX_BY_TWO,
        H6,
        group_size=2,
        block_size=2,
        remark="every grid has every update before it",
    ),
    quantize(
        "groups_across_blocks",
        "stale_grid block",
        NINE_BY_THREE,
        H9,
        group_size=3,
        block_size=4,
        symmetric=False,
    ),
    quantize("blocks_of_four", "block odd_size", NINE, H9, block_size=4),
    quantize("blocks_of_one", "block", NINE, H9, block_size=1),
    quantize("a_block_beyond_the_row", "block_default", NINE, H9, block_size=128),
    quantize("most_important_first", "act_order inverse_order", NINE, H9, act_order=True),
    quantize(
        "order_and_groups",
        "act_order inverse_order group_index",
        NINE_BY_THREE,
        H9,
        group_size=3,
        act_order=True,
        symmetric=False,
    ),
    quantize(
        "order_and_static_groups",
        "static_groups act_order inverse_order",
        NINE_BY_THREE,
        H9,
        group_size=3,
        act_order=True,
        static_groups=True,
    ),
    quantize(
        "static_groups_alone",
        "static_groups stale_grid",
        NINE_BY_THREE,
        H9,
        group_size=3,
        block_size=3,
        static_groups=True,
    ),
    quantize(
        "equal_importance",
        "equal_importance act_order",
        [[1.5, 3.0, 6.0, 12.0]],
        diagonal(2.0, 8.0, 8.0, 8.0),
        bits=2,
        group_size=2,
        act_order=True,
        remark="inputs 1, 2, 3, 0",
    ),
    quantize("singular", "definite", [[1.0, 2.0]], [[1.0, 1.0], [1.0, 1.0]], error="hessian"),
    quantize(
        "indefinite",
        "definite",
        [[1.0, 2.0]],
        [[1.0, 4.0], [4.0, 1.0]],
        damping=0.5,
        error="hessian",
    ),
    quantize(
        "not_symmetric", "not_symmetric", [[1.0, 2.0]], [[2.0, 1.0], [0.5, 2.0]], error="hessian"
    ),
    quantize("hessian_of_another_size", "shape", [[1.0, 2.0, 3.0]], TWO, error="hessian"),
    quantize("nan_in_weight", "non_finite", [[1.0, math.nan]], TWO, error="weight"),
    quantize(
        "infinity_in_hessian", "non_finite", [[1.0, 2.0]], diagonal(1.0, math.inf), error="hessian"
    ),
    quantize("negative_damping", "params_range", [[1.0, 2.0]], TWO, damping=-0.5, error="damping"),
    quantize("blocks_of_none", "params_range", [[1.0, 2.0]], TWO, block_size=0, error="block_size"),
    quantize("nine_bits", "params_range", [[1.0, 2.0]], TWO, bits=9, error="bits"),
    quantize(
        "a_group_that_does_not_divide",
        "params_range",
        [[1.0, 2.0]],
        TWO,
        group_size=3,
        error="group_size",
    ),
]

FILES = [GoldenFile("gptq/gptq.quantize.toml", "gptq.quantize", NOTES, CASES)]
