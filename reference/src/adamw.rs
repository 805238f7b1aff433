//! AdamW: Adam with decoupled weight decay (arXiv:1711.05101).

use ndarray::{ArrayD, ArrayViewD, Zip};

use crate::spec::AdamWSpec;
use crate::{Error, Real, check};

/// A parameter and its moments.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamWState<T> {
    /// The parameter.
    pub parameter: ArrayD<T>,
    /// Running mean of the gradient.
    pub first_moment: ArrayD<T>,
    /// Running mean of the squared gradient, never negative.
    pub second_moment: ArrayD<T>,
}

/// One step; the first is step 1. Eq. (T1).
///
/// ```text
/// first_moment' = beta1 * first_moment + (1 - beta1) * gradient
/// second_moment' = beta2 * second_moment + (1 - beta2) * gradient^2
/// direction = (first_moment' / (1 - beta1^step)) / (sqrt(second_moment' / (1 - beta2^step)) + eps)
/// parameter' = parameter * (1 - lr * weight_decay) - lr * direction
/// ```
///
/// `1 - beta`, `1 - beta^step` and `1 - lr * weight_decay` are computed in f64 and rounded once.
///
/// # Shapes
/// `parameter`, `gradient`, `first_moment`, `second_moment` alike -> the same, three times
///
/// # Errors
/// `Shape`, `NonFinite`, `Negative` for a second moment below zero, `Spec` for step 0, or an `lr`
/// or `weight_decay` that is negative or not finite.
#[expect(clippy::too_many_arguments, reason = "the equation has these letters")]
pub fn adamw_step<T: Real>(
    parameter: ArrayViewD<T>,
    gradient: ArrayViewD<T>,
    first_moment: ArrayViewD<T>,
    second_moment: ArrayViewD<T>,
    spec: &AdamWSpec,
    lr: f64,
    weight_decay: f64,
    step: u64,
) -> Result<AdamWState<T>, Error> {
    const OPERATION: &str = "adamw_step";
    check::finite(OPERATION, "parameter", &parameter)?;
    check::input(OPERATION, "gradient", &gradient, parameter.shape())?;
    check::input(OPERATION, "first_moment", &first_moment, parameter.shape())?;
    check::input(OPERATION, "second_moment", &second_moment, parameter.shape())?;
    for (position, value) in second_moment.iter().enumerate() {
        if *value < T::zero() {
            return Err(Error::Negative {
                operation: OPERATION,
                tensor: "second_moment".to_owned(),
                index: check::index_of(position, second_moment.shape()),
                value: value.value(),
            });
        }
    }
    for (field, value) in [("lr", lr), ("weight_decay", weight_decay)] {
        if !(value >= 0.0 && value.is_finite()) {
            return Err(check::out_of_range(field, value, "at least 0"));
        }
    }
    if step == 0 {
        return Err(check::out_of_range("step", step, "at least 1"));
    }
    let moment = |beta: f64, old: &ArrayViewD<T>, power: fn(T) -> T| {
        let (keep, take) = (T::of(beta), T::of(1.0 - beta));
        Zip::from(old).and(&gradient).map_collect(|&old, &g| keep * old + take * power(g))
    };
    let first_moment = moment(spec.beta1, &first_moment, |g| g);
    let second_moment = moment(spec.beta2, &second_moment, |g| g * g);
    let first_correction = T::of(1.0 - spec.beta1.powf(step as f64));
    let second_correction = T::of(1.0 - spec.beta2.powf(step as f64));
    let keep = T::of(1.0 - lr * weight_decay);
    let (lr, eps): (T, T) = (check::number("lr", lr)?, check::positive("eps", spec.eps)?);
    let parameter = Zip::from(&parameter).and(&first_moment).and(&second_moment).map_collect(
        |&parameter, &first, &second| {
            let direction =
                (first / first_correction) / ((second / second_correction).sqrt() + eps);
            parameter * keep - lr * direction
        },
    );
    Ok(AdamWState {
        parameter: check::result(OPERATION, "parameter", parameter)?,
        first_moment: check::result(OPERATION, "first_moment", first_moment)?,
        second_moment: check::result(OPERATION, "second_moment", second_moment)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use ndarray::arr0;

    /// One step on a scalar, from its moments.
    fn scalar_step(
        [parameter, gradient, first, second]: [f64; 4],
        spec: &AdamWSpec,
        (lr, weight_decay): (f64, f64),
        step: u64,
    ) -> Result<[f64; 3], Error> {
        let [parameter, gradient, first, second] =
            [parameter, gradient, first, second].map(|value| arr0(value).into_dyn());
        let state = adamw_step(
            parameter.view(),
            gradient.view(),
            first.view(),
            second.view(),
            spec,
            lr,
            weight_decay,
            step,
        )?;
        Ok([state.parameter, state.first_moment, state.second_moment].map(|array| array.sum()))
    }

    #[test]
    fn example_of_t1() {
        let spec = AdamWSpec::new(0.5, 0.75, 2.0).unwrap();
        let state = scalar_step([1.0, 2.0, 0.0, 0.0], &spec, (0.1, 0.5), 1).unwrap();
        assert_relative_eq!(state[..], [0.9, 1.0, 1.0][..], epsilon = 1e-15);
    }

    #[test]
    fn with_a_constant_gradient_every_step_is_the_learning_rate() {
        // Bias correction makes both means exact at any step; eps is far below the gradient.
        let spec = AdamWSpec::new(0.9, 0.999, 1e-30).unwrap();
        let mut state = [1.0, 0.0, 0.0];
        for step in 1..=20 {
            let before = state[0];
            state = scalar_step([state[0], -3.0, state[1], state[2]], &spec, (0.25, 0.0), step)
                .unwrap();
            assert_relative_eq!(state[0] - before, 0.25, epsilon = 1e-12);
        }
    }

    #[test]
    fn decay_does_not_pass_through_the_moments() {
        let spec = AdamWSpec::new(0.9, 0.999, 1e-8).unwrap();
        let state = scalar_step([2.0, 0.0, 0.0, 0.0], &spec, (0.5, 0.25), 1).unwrap();
        assert_eq!(state, [1.75, 0.0, 0.0]);
    }

    #[test]
    fn impossible_constants_and_moments_are_refused() {
        let spec = AdamWSpec::new(0.9, 0.999, 1e-8).unwrap();
        let ok = [1.0, 1.0, 0.0, 0.0];
        for (state, rates, step, message) in [
            (ok, (0.1, 0.0), 0, "step is 0, expected at least 1"),
            (ok, (f64::NAN, 0.0), 1, "lr is NaN, expected at least 0"),
            (ok, (0.1, -1.0), 1, "weight_decay is -1, expected at least 0"),
            (
                [1.0, 1.0, 0.0, -0.5],
                (0.1, 0.0),
                1,
                "adamw_step: second_moment[] is -0.5, expected at least 0",
            ),
        ] {
            assert_eq!(scalar_step(state, &spec, rates, step).unwrap_err().to_string(), message);
        }
    }
}
