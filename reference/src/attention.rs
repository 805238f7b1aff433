//! Causal grouped-query attention.

use ndarray::{Array4, ArrayView1, ArrayView4, ArrayViewMut1, Axis};

use crate::{Error, Real, check};

/// Gradients of a loss through [`attention`].
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionGradients<T> {
    /// `[batch, tokens, heads, head_dim]`
    pub d_q: Array4<T>,
    /// `[batch, tokens, kv_heads, head_dim]`
    pub d_k: Array4<T>,
    /// `[batch, tokens, kv_heads, head_dim]`
    pub d_v: Array4<T>,
}

/// Checks the shapes; the answer is how many query heads share one key head.
fn check_heads<T: Real>(
    operation: &'static str,
    q: &ArrayView4<T>,
    k: &ArrayView4<T>,
    v: &ArrayView4<T>,
) -> Result<usize, Error> {
    let (batch, tokens, heads, head_dim) = q.dim();
    let kv_heads = k.dim().2;
    check::finite(operation, "q", q)?;
    check::input(operation, "k", k, &[batch, tokens, kv_heads, head_dim])?;
    check::input(operation, "v", v, &[batch, tokens, kv_heads, head_dim])?;
    if head_dim == 0 {
        return Err(check::out_of_range("head_dim", head_dim, "at least 1"));
    }
    if kv_heads == 0 || heads % kv_heads != 0 {
        return Err(check::out_of_range("kv_heads", kv_heads, "a divisor of heads"));
    }
    Ok(heads / kv_heads)
}

/// One head of one token: `x[b,t,h,:]`.
fn vector<T>(x: &Array4<T>, (b, t, h): (usize, usize, usize)) -> ArrayView1<'_, T> {
    let sequence = x.view().index_axis_move(Axis(0), b);
    sequence.index_axis_move(Axis(0), t).index_axis_move(Axis(0), h)
}

/// The same, to be written.
fn vector_mut<T>(x: &mut Array4<T>, (b, t, h): (usize, usize, usize)) -> ArrayViewMut1<'_, T> {
    let sequence = x.view_mut().index_axis_move(Axis(0), b);
    sequence.index_axis_move(Axis(0), t).index_axis_move(Axis(0), h)
}

/// `probability[0..=t]` of one query; shifting by the largest score keeps every exponential finite.
fn probabilities<T: Real>(
    q: &Array4<T>,
    k: &Array4<T>,
    (b, t, h, kv): (usize, usize, usize, usize),
    out: &mut Vec<T>,
) {
    let root = T::of(1.0 / (q.dim().3 as f64).sqrt());
    out.clear();
    out.extend((0..=t).map(|u| check::dot(vector(q, (b, t, h)), vector(k, (b, u, kv))) * root));
    let largest = out.iter().copied().fold(-T::infinity(), T::max);
    let mut sum = T::zero();
    for score in out.iter_mut() {
        *score = (*score - largest).exp();
        sum += *score;
    }
    for weight in out.iter_mut() {
        *weight /= sum;
    }
}

/// Causal attention; query head `h` reads key head `kv = h / (heads / kv_heads)`. Eq. (N4a).
///
/// ```text
/// score[t,u] = (sum_d q[b,t,h,d] * k[b,u,kv,d]) / sqrt(head_dim), u <= t
/// probability[t,u] = exp(score[t,u]) / sum_(w <= t) exp(score[t,w])
/// output[b,t,h,d] = sum_(u <= t) probability[t,u] * v[b,u,kv,d]
/// ```
///
/// # Shapes
/// `q [batch, tokens, heads, head_dim]`, `k, v [batch, tokens, kv_heads, head_dim]` -> like `q`
///
/// # Errors
/// `Shape`, `NonFinite`, `Spec` for a `kv_heads` that does not divide `heads`.
pub fn attention<T: Real>(
    q: ArrayView4<T>,
    k: ArrayView4<T>,
    v: ArrayView4<T>,
) -> Result<Array4<T>, Error> {
    const OPERATION: &str = "attention";
    let heads_per_kv = check_heads(OPERATION, &q, &k, &v)?;
    let [q, k, v] = [q, k, v].map(|factor| factor.mapv(T::operand));
    let (batch, tokens, heads, _) = q.dim();
    let mut output = Array4::zeros(q.dim());
    let mut probability = Vec::with_capacity(tokens);
    for b in 0..batch {
        for h in 0..heads {
            let kv = h / heads_per_kv;
            for t in 0..tokens {
                probabilities(&q, &k, (b, t, h, kv), &mut probability);
                let mut output = vector_mut(&mut output, (b, t, h));
                for (u, p) in probability.iter().map(|p| p.operand()).enumerate() {
                    output.zip_mut_with(&vector(&v, (b, u, kv)), |sum, &v| *sum += p * v);
                }
            }
        }
    }
    check::result(OPERATION, "output", output)
}

/// Gradients of queries, keys and values; the probabilities are recomputed. Eq. (N4b).
///
/// ```text
/// d_v[b,u,kv,d] = sum_(h of kv) sum_(t >= u) probability[t,u] * d_output[b,t,h,d]
/// d_probability[t,u] = sum_d d_output[b,t,h,d] * v[b,u,kv,d]
/// mean[t] = sum_(w <= t) probability[t,w] * d_probability[t,w]
/// d_score[t,u] = probability[t,u] * (d_probability[t,u] - mean[t])
/// d_q[b,t,h,d] = (sum_(u <= t) d_score[t,u] * k[b,u,kv,d]) / sqrt(head_dim)
/// d_k[b,u,kv,d] = (sum_(h of kv) sum_(t >= u) d_score[t,u] * q[b,t,h,d]) / sqrt(head_dim)
/// ```
///
/// # Shapes
/// as [`attention`], `d_output` like `q` -> like `q`, `k`, `v`
///
/// # Errors
/// As [`attention`].
pub fn attention_backward<T: Real>(
    q: ArrayView4<T>,
    k: ArrayView4<T>,
    v: ArrayView4<T>,
    d_output: ArrayView4<T>,
) -> Result<AttentionGradients<T>, Error> {
    const OPERATION: &str = "attention_backward";
    let heads_per_kv = check_heads(OPERATION, &q, &k, &v)?;
    check::input(OPERATION, "d_output", &d_output, q.shape())?;
    let [q, k, v, d_output] = [q, k, v, d_output].map(|factor| factor.mapv(T::operand));
    let (batch, tokens, heads, head_dim) = q.dim();
    let root = T::of(1.0 / (head_dim as f64).sqrt());
    let mut d_q = Array4::zeros(q.dim());
    let mut d_k = Array4::zeros(k.dim());
    let mut d_v = Array4::zeros(v.dim());
    let mut probability = Vec::with_capacity(tokens);
    let mut d_probability = Vec::with_capacity(tokens);
    for b in 0..batch {
        for h in 0..heads {
            let kv = h / heads_per_kv;
            for t in 0..tokens {
                let d_row = vector(&d_output, (b, t, h));
                let q_row = vector(&q, (b, t, h));
                let mut d_q_row = vector_mut(&mut d_q, (b, t, h));
                probabilities(&q, &k, (b, t, h, kv), &mut probability);
                d_probability.clear();
                d_probability.extend((0..=t).map(|u| check::dot(d_row, vector(&v, (b, u, kv)))));
                let mut mean = T::zero();
                for (&p, &d_p) in probability.iter().zip(&d_probability) {
                    mean += p * d_p;
                }
                for u in 0..=t {
                    let d_score = probability[u] * (d_probability[u] - mean) * root;
                    let (p, d_score) = (probability[u].operand(), d_score.operand());
                    vector_mut(&mut d_v, (b, u, kv)).zip_mut_with(&d_row, |d_v, &d| *d_v += p * d);
                    d_q_row.zip_mut_with(&vector(&k, (b, u, kv)), |d_q, &k| *d_q += d_score * k);
                    vector_mut(&mut d_k, (b, u, kv))
                        .zip_mut_with(&q_row, |d_k, &q| *d_k += d_score * q);
                }
            }
        }
    }
    Ok(AttentionGradients {
        d_q: check::result(OPERATION, "d_q", d_q)?,
        d_k: check::result(OPERATION, "d_k", d_k)?,
        d_v: check::result(OPERATION, "d_v", d_v)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    fn one_head(values: [f64; 2]) -> Array4<f64> {
        Array4::from_shape_vec((1, 2, 1, 1), values.to_vec()).unwrap()
    }

    #[test]
    fn example_of_n4() {
        let (q, k, v) = (one_head([0.0, 0.0]), one_head([1.0, 5.0]), one_head([1.0, 3.0]));
        let output = attention(q.view(), k.view(), v.view()).unwrap();
        assert_eq!(output, one_head([1.0, 2.0]));
        let d_output = one_head([0.0, 1.0]);
        let gradients = attention_backward(q.view(), k.view(), v.view(), d_output.view()).unwrap();
        assert_eq!(gradients.d_v, one_head([0.5, 0.5]));
        assert_eq!(gradients.d_q, one_head([0.0, 2.0]));
        assert_eq!(gradients.d_k, one_head([0.0, 0.0]));
    }

    #[test]
    fn scores_are_divided_by_the_root_of_the_width() {
        // Width 4, score 2 ln 3 / sqrt(4) = ln 3 against 0: probabilities 3/4 and 1/4.
        let mut q = Array4::zeros((1, 2, 1, 4));
        let mut k = Array4::zeros((1, 2, 1, 4));
        let mut v = Array4::zeros((1, 2, 1, 4));
        q[[0, 1, 0, 0]] = 2.0;
        k[[0, 0, 0, 0]] = 3.0_f64.ln();
        v[[0, 0, 0, 0]] = 1.0;
        let output = attention(q.view(), k.view(), v.view()).unwrap();
        assert_relative_eq!(output[[0, 1, 0, 0]], 0.75, epsilon = 1e-15);
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let (q, k, v) = (one_head([1e3, 1e3]), one_head([1.0, 2.0]), one_head([1.0, 3.0]));
        let output = attention(q.view(), k.view(), v.view()).unwrap();
        assert_eq!(output, one_head([1.0, 3.0]));
    }

    #[test]
    fn kv_heads_must_divide_heads() {
        let (q, k) = (Array4::<f64>::zeros((1, 1, 3, 1)), Array4::zeros((1, 1, 2, 1)));
        let refused = attention(q.view(), k.view(), k.view()).unwrap_err();
        assert_eq!(refused.to_string(), "kv_heads is 2, expected a divisor of heads");
        let none = Array4::zeros((1, 1, 0, 1));
        assert!(attention(q.view(), none.view(), none.view()).is_err());
    }
}
