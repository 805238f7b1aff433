//! Properties of (T1).

use ndarray::{ArrayD, IxDyn, arr0};
use plumbline_reference::adamw::{AdamWState, adamw_step};
use plumbline_reference::spec::AdamWSpec;
use proptest::collection::vec;
use proptest::prelude::*;

const EPS: f64 = 1e-8;

fn spec() -> AdamWSpec {
    AdamWSpec::new(0.9, 0.999, EPS).unwrap()
}

fn start(parameter: f64) -> AdamWState<f64> {
    let zero = ArrayD::zeros(IxDyn(&[]));
    AdamWState {
        parameter: arr0(parameter).into_dyn(),
        first_moment: zero.clone(),
        second_moment: zero,
    }
}

fn step(state: &AdamWState<f64>, gradient: f64, lr: f64, decay: f64, step: u64) -> AdamWState<f64> {
    let gradient = arr0(gradient).into_dyn();
    let (first, second) = (state.first_moment.view(), state.second_moment.view());
    let parameter = state.parameter.view();
    adamw_step(parameter, gradient.view(), first, second, &spec(), lr, decay, step).unwrap()
}

fn only(array: &ArrayD<f64>) -> f64 {
    *array.first().unwrap()
}

proptest! {
    /// Property of (T1): after n steps each moment is the weighted sum of the gradients, and the
    /// bias correction divides by the sum of its weights.
    #[test]
    fn moments_are_weighted_sums(gradients in vec(-2.0..2.0_f64, 1..12), lr in 1e-4..0.1_f64) {
        let mut state = start(0.5);
        let mut before = 0.5;
        for (k, &gradient) in gradients.iter().enumerate() {
            before = only(&state.parameter);
            state = step(&state, gradient, lr, 0.0, k as u64 + 1);
        }
        let count = gradients.len() as i32;
        let sum = |beta: f64, power: i32| -> f64 {
            let terms = gradients.iter().zip((0..count).rev());
            terms.map(|(g, age)| (1.0 - beta) * beta.powi(age) * g.powi(power)).sum()
        };
        let weights = |beta: f64| 1.0 - beta.powi(count);
        let (first, second) = (sum(0.9, 1), sum(0.999, 2));
        let close = |a: f64, b: f64, size: f64| (a - b).abs() <= 1e-14 * size;
        prop_assert!(close(only(&state.first_moment), first, 2.0));
        prop_assert!(close(only(&state.second_moment), second, 4.0));
        let direction = first / weights(0.9) / ((second / weights(0.999)).sqrt() + EPS);
        // 1 - beta2 is known to 1e-13 of itself only.
        let moved = before - only(&state.parameter);
        prop_assert!((moved - lr * direction).abs() <= 1e-12, "{moved} {}", lr * direction);
    }

    /// Property of (T1): the first step moves by the learning rate, against the gradient's sign.
    #[test]
    fn the_first_step_is_lr_long(gradient in -10.0..10.0_f64, lr in 1e-5..0.1_f64) {
        prop_assume!(gradient.abs() > 1e-3);
        let moved = only(&step(&start(0.0), gradient, lr, 0.0, 1).parameter);
        // eps shortens it by eps / |gradient|.
        prop_assert!((moved + lr * gradient.signum()).abs() <= lr * (EPS / gradient.abs() + 1e-12));
    }

    /// Property of (T1): decay is decoupled, so without a gradient it is all that happens.
    #[test]
    fn decay_alone_scales(parameter in -10.0..10.0_f64, lr in 0.0..0.1_f64, decay in 0.0..0.5_f64) {
        let after = step(&start(parameter), 0.0, lr, decay, 1);
        prop_assert_eq!(only(&after.parameter), parameter * (1.0 - lr * decay));
        prop_assert_eq!(only(&after.first_moment), 0.0);
        prop_assert_eq!(only(&after.second_moment), 0.0);
    }
}
