//! Shrinking, over the whole registry: every candidate is a request that the reference answers, and
//! the smallest failing one is small.

use plumbline_conformance::case::Request;
use plumbline_conformance::ops::{OPERATIONS, find};
use plumbline_conformance::strategy::{Drawn, Requests, Shrinking, answered};
use plumbline_conformance::tensor::Tensor;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

fn runner() -> TestRunner {
    let config = Config { cases: 64, failure_persistence: None, ..Config::default() };
    let rng = proptest::test_runner::TestRng::deterministic_rng(config.rng_algorithm);
    TestRunner::new_with_rng(config, rng)
}

/// Shrinks as proptest does, on anything that fails.
fn smallest(mut tree: Shrinking, fails: impl Fn(&Request) -> bool) -> Drawn {
    let mut kept = tree.current();
    while tree.simplify() {
        let candidate = tree.current();
        assert!(answered(&candidate.request).is_ok(), "{candidate:?}");
        if fails(&candidate.request) {
            kept = candidate;
        } else {
            assert!(tree.complicate(), "a candidate can be undone");
            assert_eq!(format!("{:?}", tree.current()), format!("{kept:?}"));
        }
    }
    kept
}

fn elements(request: &Request) -> usize {
    request.inputs.values().map(Tensor::len).sum()
}

#[test]
fn what_always_fails_shrinks_to_next_to_nothing() {
    for op in OPERATIONS.iter().copied() {
        let tree = Requests::of(op, 1).new_tree(&mut runner()).unwrap();
        let before = tree.current();
        let after = smallest(tree, |_| true).request;
        let tensors = after.inputs.len();
        // One element of each tensor; rotary embedding needs two, and so do losses.
        // A model's configuration fixes the shapes of its weights.
        let known = |name: &String| op.inputs.iter().any(|spec| *spec.name == **name);
        let named_weights = !after.inputs.keys().all(known);
        assert!(named_weights || elements(&after) <= 2 * tensors, "{op:?}: {:?}", after.inputs);
        assert!(elements(&after) <= elements(&before.request));
        let not_simple = after.inputs.values().flat_map(Tensor::values);
        let not_simple = not_simple.filter(|value| *value != 0.0 && *value != 1.0).count();
        assert!(not_simple <= 1, "{op:?}: {:?}", after.inputs);
    }
}

/// A request that must keep something is shrunk to just that.
#[test]
fn what_a_failure_needs_is_kept() {
    let clipped = |request: &Request| {
        let outputs = (request.op.run.f64)(request).unwrap();
        outputs["codes"].values().any(|code| code > 2.0)
    };
    let groups = |request: &Request| request.inputs["scale"].shape()[1] >= 2;
    let heads = |request: &Request| request.inputs["q"].shape()[2] >= 2;
    type Needed = fn(&Request) -> bool;
    let cases: [(&str, Needed, usize); 4] = [
        ("fake_quantize.forward", clipped, 3),
        // Two of weight, scale, offset, x and lora_a, one of lora_b and d_y.
        ("l4q.backward", groups, 12),
        ("attention.forward", heads, 4),
        ("affine.dequantize", groups, 6),
    ];
    for (name, needed, size) in cases {
        let op = find(name).unwrap();
        let failing = Requests::of(op, 5).prop_filter("fails", |drawn| needed(&drawn.request));
        let tree = failing.new_tree(&mut runner()).unwrap();
        let drawn = tree.current();
        let after = smallest(Shrinking::new(drawn), needed).request;
        assert!(needed(&after));
        assert_eq!(elements(&after), size, "{name}: {:?}", after.inputs);
    }
}

/// proptest itself drives the tree, and names the draw.
#[test]
fn proptest_shrinks_a_failing_property() {
    let op = find("lora.forward").unwrap();
    let property = |drawn: Drawn| {
        let tokens = drawn.request.inputs["x"].shape()[0];
        if tokens < 3 { Ok(()) } else { Err(TestCaseError::fail(format!("{tokens} tokens"))) }
    };
    let Err(TestError::Fail(why, drawn)) = runner().run(&Requests::of(op, 2), property) else {
        panic!("some draw has three tokens");
    };
    assert_eq!(why.message(), "3 tokens");
    assert_eq!(drawn.request.inputs["x"].shape(), [3, 1]);
    assert!(format!("{drawn:?}").starts_with("lora.forward seed 2 number"), "{drawn:?}");
}
