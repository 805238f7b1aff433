//! Derivatives by differences, each with a bound on its own error.

use ndarray::{ArrayBase, ArrayD, Data, Dimension};

/// Steps are powers of two, so that they add to a value with as little rounding as possible.
const STEP: f64 = 1.0 / 256.0;

/// A derivative and a bound on its error.
struct Estimate {
    value: f64,
    error: f64,
}

/// The derivative of `f` at 0 by central differences of fourth order, where every evaluation of `f`
/// is off by at most `noise`.
///
/// Halving the step divides the truncation error by 16, so the finer value is off by a fifteenth of
/// its difference from the coarser one; the whole difference is taken. Rounding contributes
/// `(8 + 8 + 1 + 1) * noise / (12 * step / 2)`.
fn derivative(noise: f64, f: impl Fn(f64) -> f64) -> Estimate {
    let difference =
        |step: f64| (8.0 * (f(step) - f(-step)) - (f(2.0 * step) - f(-2.0 * step))) / (12.0 * step);
    let (coarse, fine) = (difference(STEP), difference(STEP / 2.0));
    Estimate { value: fine, error: (coarse - fine).abs() + 3.0 * noise / STEP }
}

/// Every entry of `gradient` must be the derivative of `loss` by that entry of `tensor`, to within
/// the bound of the difference; and the bound must be small beside the gradient, or nothing is
/// shown.
pub fn assert_gradient<S: Data<Elem = f64>, D: Dimension>(
    name: &str,
    tensor: &ArrayBase<S, D>,
    gradient: &ArrayBase<impl Data<Elem = f64>, D>,
    noise: f64,
    loss: impl Fn(&ArrayD<f64>) -> f64,
) {
    assert_eq!(tensor.shape(), gradient.shape(), "shape of d_{name}");
    let largest = gradient.iter().fold(1.0_f64, |largest, g| largest.max(g.abs()));
    let base = tensor.to_owned().into_dyn();
    for (position, &gradient) in gradient.iter().enumerate() {
        let estimate = derivative(noise, |step| {
            let mut moved = base.clone();
            *moved.iter_mut().nth(position).unwrap() += step;
            loss(&moved)
        });
        let error = (gradient - estimate.value).abs();
        assert!(
            error <= estimate.error,
            "d_{name}[{position}] is {gradient}, differences give {} +- {}",
            estimate.value,
            estimate.error
        );
        assert!(estimate.error <= 1e-7 * largest, "bound {} shows nothing", estimate.error);
    }
}

/// A bound on the rounding of `sum d * output`, where every output is the result of at most
/// `roundings` operations on numbers no larger than `magnitude`.
pub fn noise(roundings: usize, outputs: usize, magnitude: f64) -> f64 {
    (roundings + outputs) as f64 * f64::EPSILON / 2.0 * outputs as f64 * magnitude
}
