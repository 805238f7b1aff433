//! Attention on tensor cores: operands, probabilities and gradients of scores are rounded to bf16.

#[path = "../transformer/mod.rs"]
mod transformer;

use plumbline::cuda::{Compute, Cuda, Interpreter};
use plumbline::ops::attention::AttentionArgs;
use transformer::{Values, fresh, judge_rounded_attention, run_attention, taken};

fn cuda(compute: Compute) -> Cuda<Interpreter> {
    Cuda::with_compute(Interpreter::with_orders(2), compute).unwrap()
}

fn sizes(
    [batch, queries, keys]: [usize; 3],
    [heads, kv_heads, head_dim]: [usize; 3],
) -> AttentionArgs {
    AttentionArgs { batch, queries, keys, heads, kv_heads, head_dim }
}

#[test]
fn rounded_attention_and_its_gradients_are_within_their_roundings() {
    for (args, documents) in [
        (sizes([2, 17, 19], [4, 2, 64]), &[][..]), // tails of rows and of keys
        (sizes([1, 70, 75], [2, 1, 64]), &[]),     // three tiles of rows, two of keys
        (sizes([1, 70, 70], [2, 1, 64]), &[1, 8, 19, 33, 50, 61]),
        (sizes([1, 40, 67], [2, 2, 128]), &[]),
        (sizes([1, 67, 67], [1, 1, 128]), &[5, 66]),
    ] {
        let (rounding, plain) = (cuda(Compute::Bf16), cuda(Compute::F32));
        judge_rounded_attention(&rounding, &plain, args, documents);
    }
}

#[test]
fn other_widths_and_a_generated_token_stay_f32() {
    for args in [sizes([1, 20, 20], [1, 1, 32]), sizes([1, 4, 6], [4, 1, 64])] {
        let (query, key) = (args.queries * args.heads * args.head_dim, args.keys * args.head_dim);
        let mut draw = Values::new(3);
        let inputs = [query, key, key, query].map(|len| draw.take(len));
        let [rounding, plain] = [Compute::Bf16, Compute::F32]
            .map(|compute| run_attention(&cuda(compute), args, None, &inputs));
        assert_eq!(rounding, plain, "{args:?}");
    }
}
