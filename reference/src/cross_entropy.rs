//! The loss.

use ndarray::{Array2, ArrayView1, ArrayView2};

use crate::{Error, Real, check};

/// The class of each counted token, `None` where ignored, and how many are counted.
fn classes<T: Real>(
    operation: &'static str,
    logits: &ArrayView2<T>,
    targets: &ArrayView1<i32>,
    ignore_index: i32,
) -> Result<(Vec<Option<usize>>, usize), Error> {
    let (tokens, vocab_size) = logits.dim();
    check::finite(operation, "logits", logits)?;
    check::shape(operation, "targets", targets.shape(), &[tokens])?;
    let mut classes = Vec::with_capacity(tokens);
    for (t, &target) in targets.iter().enumerate() {
        classes.push(match usize::try_from(target) {
            _ if target == ignore_index => None,
            Ok(class) if class < vocab_size => Some(class),
            _ => {
                let (index, token) = (vec![t], i64::from(target));
                return Err(Error::TokenOutOfRange { operation, index, token, vocab_size });
            }
        });
    }
    let counted = classes.iter().flatten().count();
    if counted == 0 {
        return Err(Error::Empty { operation, what: "no target is counted" });
    }
    Ok((classes, counted))
}

/// `max_w row[w]` and `sum_w exp(row[w] - max)`.
fn shifted_sum<T: Real>(row: ArrayView1<T>) -> (T, T) {
    let largest = row.iter().copied().fold(-T::infinity(), T::max);
    let sum = row.iter().fold(T::zero(), |sum, &logit| sum + (logit - largest).exp());
    (largest, sum)
}

/// Mean negative log-likelihood of the targets that are not `ignore_index`. Eq. (N7a).
///
/// ```text
/// largest[t] = max_w logits[t,w]
/// surprise[t] = (largest[t] - logits[t,targets[t]]) + ln(sum_w exp(logits[t,w] - largest[t]))
/// loss = (sum_(t counted) surprise[t]) / counted
/// ```
///
/// # Shapes
/// `logits [tokens, vocab]`, `targets [tokens]` -> a scalar
///
/// # Errors
/// `Shape`, `NonFinite`, `TokenOutOfRange`, and `Empty` where no target is counted.
pub fn cross_entropy<T: Real>(
    logits: ArrayView2<T>,
    targets: ArrayView1<i32>,
    ignore_index: i32,
) -> Result<T, Error> {
    const OPERATION: &str = "cross_entropy";
    let (classes, counted) = classes(OPERATION, &logits, &targets, ignore_index)?;
    let mut sum = T::zero();
    for (row, class) in logits.rows().into_iter().zip(classes) {
        if let Some(class) = class {
            let (largest, exponentials) = shifted_sum(row);
            sum += (largest - row[class]) + exponentials.ln();
        }
    }
    let loss = ndarray::arr0(sum / T::of(counted as f64));
    Ok(check::result(OPERATION, "loss", loss)?.into_scalar())
}

/// Gradient of the logits. Eq. (N7b).
///
/// ```text
/// softmax[t,w] = exp(logits[t,w] - largest[t]) / sum_w exp(logits[t,w] - largest[t])
/// d_logits[t,w] = (softmax[t,w] - (1 where w = targets[t], else 0)) / counted
/// d_logits[t,w] = 0 where targets[t] = ignore_index
/// ```
///
/// # Shapes
/// `logits [tokens, vocab]`, `targets [tokens]` -> `[tokens, vocab]`
///
/// # Errors
/// As [`cross_entropy`].
pub fn cross_entropy_backward<T: Real>(
    logits: ArrayView2<T>,
    targets: ArrayView1<i32>,
    ignore_index: i32,
) -> Result<Array2<T>, Error> {
    const OPERATION: &str = "cross_entropy_backward";
    let (classes, counted) = classes(OPERATION, &logits, &targets, ignore_index)?;
    let counted = T::of(counted as f64);
    let mut d_logits = Array2::zeros(logits.dim());
    for (t, class) in classes.into_iter().enumerate() {
        let Some(class) = class else { continue };
        let (largest, exponentials) = shifted_sum(logits.row(t));
        d_logits.row_mut(t).zip_mut_with(&logits.row(t), |d_logit, &logit| {
            *d_logit = (logit - largest).exp() / exponentials;
        });
        d_logits[[t, class]] -= T::one();
        d_logits.row_mut(t).mapv_inplace(|d_logit| d_logit / counted);
    }
    Ok(d_logits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use ndarray::array;

    #[test]
    fn example_of_n7() {
        let (logits, targets) = (array![[0.0, 0.0], [0.0, 3.0_f64.ln()]], array![0, 1]);
        let loss = cross_entropy(logits.view(), targets.view(), -100).unwrap();
        assert_relative_eq!(loss, (8.0_f64 / 3.0).ln() / 2.0, epsilon = 1e-15);
        let d_logits = cross_entropy_backward(logits.view(), targets.view(), -100).unwrap();
        assert_relative_eq!(d_logits, array![[-0.25, 0.25], [0.125, -0.125]], epsilon = 1e-15);
    }

    #[test]
    fn ignored_targets_count_for_nothing() {
        let (logits, targets) = (array![[0.0, 0.0], [0.0, 3.0_f64.ln()]], array![0, 1]);
        let loss = cross_entropy(logits.view(), targets.view(), 0).unwrap();
        assert_relative_eq!(loss, (4.0_f64 / 3.0).ln(), epsilon = 1e-15);
        let d_logits = cross_entropy_backward(logits.view(), targets.view(), 0).unwrap();
        assert_relative_eq!(d_logits, array![[0.0, 0.0], [0.25, -0.25]], epsilon = 1e-15);
    }

    #[test]
    fn nothing_to_average_is_refused() {
        let refused = cross_entropy(array![[0.0]].view(), array![-100].view(), -100).unwrap_err();
        assert_eq!(refused.to_string(), "cross_entropy: no target is counted");
        let refused = cross_entropy(array![[0.0]].view(), array![1].view(), -100).unwrap_err();
        assert_eq!(refused.to_string(), "cross_entropy: token 1 at [0], expected 0 to 1 exclusive");
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let logits = array![[3e38_f32, 0.0]];
        assert_eq!(cross_entropy(logits.view(), array![0].view(), -100).unwrap(), 0.0);
        assert_eq!(cross_entropy(logits.view(), array![1].view(), -100).unwrap(), 3e38);
    }
}
