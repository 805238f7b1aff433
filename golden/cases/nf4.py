"""Cases of NF4 and of its double quantization."""

import math
from itertools import pairwise

from case_text import GoldenFile, case
from oracle.nf4 import LEVELS

from .spread import spread

NOTES = {
    "levels": "a level that is wrong in a digit, or the 16 levels of another table",
    "thresholds": "halfway points rounded to four places, or to the type of the quotient",
    "nearest": "the level below in place of the nearest one",
    "block_index": "absmax of another block, of the row, or of the tensor",
    "across_rows": "blocks that begin anew with every row",
    "short_block": "a last block that is padded with something else than nothing, or left out",
    "sign": "max(w) in place of max(|w|), or a division by the element with its sign",
    "empty_block": "0 / 0, or the lowest level, where a block is all zeros",
    "smallest": "a multiplication by 1 / absmax, which is infinite here",
    "map": "another 8-bit map: linear, unsigned, or a format of floating point",
    "offset": "absmax quantized without taking its mean off, or a mean per block of 256",
    "no_spread": "0 / 0 where every block has the same absmax",
    "order": "codes of the weight taken with the absmax after its quantization",
    "all_blocks": "an absmax_scale for every absmax, or one for a row",
    "odd_size": "two codes a byte, or a kernel that handles whole tiles only",
    "non_finite": "a NaN or an infinity that becomes a code",
    "block_size": "a block size of 0 replaced by a default in silence",
}

EIGHTHS = spread([5, 7], seed=31, step=0.125, reach=31)


def quantize(id, flags, weight, block_size=64, double_quantize=False, **keywords):
    params = {"block_size": block_size, "double_quantize": double_quantize}
    return case(id, flags, params, weight=weight, **keywords)


# Between two levels, a little below and above the halfway point; each with a 1 in its block.
BELOW, ABOVE = (
    [
        [1.0, round((float(low) + float(high)) / 2 * 2**17 + side) / 2**17]
        for low, high in pairwise(LEVELS)
    ]
    for side in (-2, 2)
)

CASES = [
    quantize(
        "every_level",
        "levels nearest",
        [[float(level) for level in LEVELS]],
        remark="absmax is 1 and every weight is a level",
    ),
    quantize(
        "every_level_of_half",
        "levels sign",
        [[-float(level) / 2 for level in LEVELS]],
        remark="the table is not symmetric",
    ),
    quantize("below_every_halfway_point", "thresholds nearest", BELOW, 2),
    quantize("above_every_halfway_point", "thresholds nearest", ABOVE, 2),
    quantize("by_head", "sign", [[4.0, -4.0, 1.0, 0.0]], 4),
    quantize("the_largest_is_negative", "sign", [[0.5, -2.0, 1.0]], 3),
    quantize(
        "blocks_of_two",
        "block_index",
        [[1.0, 0.5, 8.0, 1.0], [0.25, -0.25, 16.0, -3.0]],
        2,
    ),
    quantize("blocks_run_on_over_rows", "across_rows short_block odd_size", EIGHTHS, 8),
    quantize("one_short_block", "short_block", [[1.0, -0.75, 0.5]], 64),
    quantize("blocks_of_one", "block_index", [[3.0, -5.0, 0.0]], 1, remark="only -1, 0 and 1"),
    quantize("an_empty_block", "empty_block", [[0.0, -0.0, 3.0, 1.0]], 2),
    quantize(
        "the_smallest_numbers",
        "smallest",
        [[2.0**-149, -(2.0**-149), 0.0, 2.0**-148]],
        2,
        remark="results below 1e-60 would be written as 0; these are not",
    ),
    quantize(
        "double_by_head",
        "map offset order",
        [[1.0, 0.29296875, 3.0, -1.5]],
        2,
        True,
        remark="absmax 1 and 3 lie -1 and 1 from their mean, and -1 is not in the map",
    ),
    quantize(
        "double_of_one_block",
        "no_spread",
        [[0.375, -0.125]],
        64,
        True,
        remark="the mean of one is itself: nothing is lost",
    ),
    quantize("double_of_equal_blocks", "no_spread", [[1.5, 0.5], [-1.5, 1.0]], 2, True),
    quantize(
        "double_of_several_blocks",
        "map all_blocks",
        [[2.0, -1.0, 4.0, 3.0], [0.5, 7.0, -16.0, 2.5], [1.0, 3.0, 9.5, 1.0]],
        2,
        True,
    ),
    quantize(
        "double_of_300_blocks",
        "offset all_blocks odd_size",
        spread([20, 15], seed=1, step=0.25, reach=6),
        1,
        True,
        remark="two scales, one mean",
    ),
    quantize(
        "double_with_an_empty_block",
        "empty_block offset",
        [[0.0, 0.0, 5.0, 1.0, 4.0, -3.0]],
        2,
        True,
        remark="absmax 0 becomes something else, and its weights stay 0",
    ),
    quantize("nan", "non_finite", [[1.0, math.nan]], error="weight"),
    quantize("infinity", "non_finite", [[-math.inf, 1.0]], error="weight"),
    quantize("blocks_of_none", "block_size", [[1.0]], 0, error="block_size"),
]

FILES = [GoldenFile("nf4/nf4.quantize.toml", "nf4.quantize", NOTES, CASES)]
