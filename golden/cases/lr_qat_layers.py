"""What the cases of LR-QAT share: their layers, and the refusals of every operation."""

from .spread import beside_reciprocals, long, spread

REFUSED = {
    "non_finite": "a NaN or infinity that clamps to an end of the range or is masked away",
    "shape": "a broadcast, transposed or truncated tensor instead of a refusal",
    "group_divides": "a group that crosses a row, or a silent fallback to one group per row",
}
KINDS = ("f32", "bf16", "f16", "fixed8", "int")

# Two rows, two groups. The update in steps is [0.25, -0.25, 0, 4], [-0.5, 0.5, 0, -8].
HAND = {
    "weight": [[0.625, -1.125, 3.5, 5.0], [-2.0, 3.5, 0.0625, 9.0]],
    "initial_scale": [[0.5, 1.0], [0.25, 2.0]],
    "lora_a": [[0.125, -0.125, 0.0, 2.0]],
    "lora_b": [[1.0], [-2.0]],
    "scale": [[0.75, 0.5], [0.25, 1.5]],
}
HAND_X = [[1.0, 2.0, -1.0, 4.0], [0.5, -8.0, 1.0, 0.25]]
HAND_D_Y = [[1.0, -2.0], [0.5, 4.0]]
ASYMMETRIC = {**HAND, "zero_point": [[0.0, 3.0], [1.0, 2.0]]}
# What goes into a live layer.
LIVE = {name: tensor for name, tensor in HAND.items() if name != "initial_scale"}
# Ties of the sum that the stored code and the update make together: 1 + 0.5, 2 + 0.5, -3 - 0.5,
# and one beside it.
TIES = {
    "weight": [[1.0, 2.0, -3.0, -4.0, 1.0, 7.0, -8.0]],
    "initial_scale": [[1.0]],
    "lora_a": [[0.5, 0.5, -0.5, -0.5, 0.53125, 0.5, -0.5]],
    "lora_b": [[1.0]],
    "scale": [[0.5]],
}
# One row about both ends of the range; the update is zero.
EDGES = {
    "weight": [[-8.0, -8.25, -8.5, -8.53125, 7.0, 7.25, 7.46875, 7.5, 0.25]],
    "initial_scale": [[1.0]],
    "lora_a": [[1.0] * 9],
    "lora_b": [[0.0]],
    "scale": [[0.5]],
}
EDGES_X = [[2.0**power for power in range(9)]]
ODD = {
    "weight": spread([3, 7], seed=51, step=0.25, reach=20),
    "initial_scale": [[0.5], [0.25], [1.0]],
    "lora_a": spread([3, 7], seed=52, step=0.25, reach=4),
    "lora_b": spread([3, 3], seed=53, step=0.5, reach=2),
    "scale": [[0.25], [0.5], [0.375]],
}
GROUPED = {
    "weight": spread([5, 9], seed=61, step=0.25, reach=24),
    "initial_scale": [[0.25 * 2 ** ((o + g) % 3) for g in range(3)] for o in range(5)],
    "lora_a": spread([2, 9], seed=62, step=0.25, reach=4),
    "lora_b": spread([5, 2], seed=63, step=0.5, reach=2),
    "scale": [[0.25 + 0.0625 * (3 * o + g) for g in range(3)] for o in range(5)],
}
GROUPED_ZERO_POINT = [[float((7 * o + 4 * g) % 16) for g in range(3)] for o in range(5)]
FLOOR = {
    "weight": [[1.0, 0.0], [2.0, 0.5]],
    "initial_scale": [[0.5], [2.0**-30]],
    "lora_a": [[1.0, 0.0]],
    "lora_b": [[0.5], [-1.0]],
    "scale": [[2.0**-30], [0.5]],
}
# Rank 4, updates of some fifty codes of 8 bits: what one product or sum loses moves codes.
LONG = {
    "weight": long([3, 8], seed=71, size=8.0),
    "initial_scale": [[0.125 + 2.0**-9 * (2 * o + g) for g in range(2)] for o in range(3)],
    "lora_a": long([4, 8], seed=72, size=5.0),
    "lora_b": long([3, 4], seed=73, size=5.0),
    "scale": [[0.25 + 2.0**-9 * (3 * o - g) for g in range(2)] for o in range(3)],
}
# The same in 16 rows of 20 weights, by groups of `size`.
MANY = {
    size: {
        "weight": long([16, 20], seed=176, size=8.0),
        "initial_scale": [
            [0.125 + 2.0**-9 * ((2 * o + g) % 13) for g in range(20 // size)] for o in range(16)
        ],
        "lora_a": long([4, 20], seed=77, size=5.0),
        "lora_b": long([16, 4], seed=78, size=5.0),
        "scale": [
            [0.25 + 2.0**-9 * ((3 * o - g) % 17) for g in range(20 // size)] for o in range(16)
        ],
    }
    for size in (4, 5)
}
X20 = long([5, 20], seed=79)


def quotients(size, steps):
    """A live layer whose weights are exactly these steps of their scales, which a reciprocal misses."""
    weight, scale = beside_reciprocals(8, 8 // size, size, steps)
    update = {"lora_a": [[1.0] * 8], "lora_b": [[0.0]] * 8}
    return {"weight": weight, **update, "scale": scale}


UNIT = {
    "weight": [[0.5]],
    "initial_scale": [[0.25]],
    "lora_a": [[2.0]],
    "lora_b": [[0.5]],
    "scale": [[0.375]],
}
X7 = spread([5, 7], seed=54)
X9 = spread([4, 9], seed=64)
X8 = long([5, 8], seed=74)
