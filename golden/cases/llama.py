"""Cases of the whole model, small enough for an oracle without an array library."""

from case_text import GoldenFile, case

from .spread import spread

NOTES = {
    "shifted_labels": "a token that is its own label, or one shift too many",
    "counted_mean": "a loss divided by all tokens, the last of each sequence too",
    "sequences_apart": "a batch read as one sequence: attention, positions or labels across it",
    "every_layer": "weights of another layer, or of the first one everywhere",
    "norm_order": "the two norms of a block exchanged",
    "final_norm": "a projection to the vocabulary without the norm before it",
    "eps": "an eps hard-coded",
    "gate_not_up": "the gate and the other projection exchanged",
    "head_sharing": "query head h paired with h % kv_heads in place of h // sharing",
    "pairing": "rows of q and k in the layout of neighbouring pairs",
    "theta": "a base of 10000 hard-coded",
    "frequency_scaling": "rope_scaling ignored",
    "tied_head": "a tied embedding with the gradient of one of its two uses",
    "own_head": "the embedding in place of a projection that the model has of its own",
    "odd_size": "a kernel that handles only whole tiles",
    "shape": "a truncated or repeated tensor instead of a refusal",
    "token_range": "a token outside the vocabulary that reads another row",
}


def weights(config, seed):
    hidden, ffn, vocab = (config[f"{name}_size"] for name in ("hidden", "intermediate", "vocab"))
    q_width = config["num_attention_heads"] * config["head_dim"]
    kv_width = config["num_key_value_heads"] * config["head_dim"]
    shapes = {"model.embed_tokens.weight": [vocab, hidden]}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "self_attn.q_proj": [q_width, hidden],
                "self_attn.k_proj": [kv_width, hidden],
                "self_attn.v_proj": [kv_width, hidden],
                "self_attn.o_proj": [hidden, q_width],
                "mlp.gate_proj": [ffn, hidden],
                "mlp.up_proj": [ffn, hidden],
                "mlp.down_proj": [hidden, ffn],
                "input_layernorm": [hidden],
                "post_attention_layernorm": [hidden],
            }.items()
        }
    shapes["model.norm.weight"] = [hidden]
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = [vocab, hidden]
    return {
        name: norm(shape, seed + index) if len(shape) == 1 else spread(shape, seed + index)
        for index, (name, shape) in enumerate(shapes.items())
    }


def norm(shape, seed):
    """Around 1, and never 0."""
    return [1.0 + number for number in spread(shape, seed, step=0.0625)]


def config(**sizes):
    return {
        "model_type": "llama",
        "hidden_act": "silu",
        "max_position_embeddings": 16,
        **sizes,
    }


TWO_LAYERS = config(
    hidden_size=4,
    intermediate_size=3,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=2,
    vocab_size=5,
    rms_norm_eps=0.0625,
    rope_theta=10000.0,
    tie_word_embeddings=False,
)
TIED = config(
    hidden_size=3,
    intermediate_size=5,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    vocab_size=4,
    rms_norm_eps=1e-05,
    rope_theta=100.0,
    tie_word_embeddings=True,
)
# The two pairs turn 2.5 and 0.25 times in 16 positions: one is mixed, one is slow.
LENGTHENED = {
    **TIED,
    "max_position_embeddings": 64,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}
LARGE, SMALL = weights(TWO_LAYERS, seed=3000), weights(TIED, seed=3100)


def model(id, flags, config, weights, tokens, error=None, remark=None):
    inputs = {"tokens": tokens, **weights}
    return case(id, flags, {"config": config}, error=error, remark=remark, **inputs)


CASES = [
    model(
        "two_layers_and_two_sequences",
        "shifted_labels counted_mean sequences_apart every_layer norm_order final_norm eps "
        "gate_not_up head_sharing own_head",
        TWO_LAYERS,
        LARGE,
        [[1, 4, 0], [3, 3, 2]],
    ),
    model(
        "tied_embedding",
        "tied_head pairing theta odd_size shifted_labels",
        TIED,
        SMALL,
        [[2, 0, 3, 2, 1]],
    ),
    model("lengthened_context", "frequency_scaling", LENGTHENED, SMALL, [[2, 0, 3, 2, 1, 1]]),
    model(
        "a_weight_of_another_shape",
        "shape",
        TIED,
        {**SMALL, "model.norm.weight": [1.0, 1.0]},
        [[2, 0]],
        error="model.norm.weight",
    ),
    model("a_token_beyond_the_vocabulary", "token_range", TIED, SMALL, [[0, 4]], error="token"),
]

FILES = [GoldenFile("llama/llama.loss_and_gradients.toml", "llama.loss_and_gradients", NOTES, CASES)]
