//! The Hessian of a layer's squared error, from its inputs. Eq. (Q20a).

use rayon::prelude::*;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::ops::linear::LinearArgs;

/// `hessian[i,k] = 2 * (sum_t x[t,i] * x[t,k]) / tokens`, window after window: the sum of a window
/// is a product of the backend in f32, and windows add up in f64.
pub(super) struct Hessian<B: Backend> {
    width: usize,
    tokens: usize,
    product: B::Floats,
    sums: Vec<f64>,
}

impl<B: Backend> Hessian<B> {
    /// Of inputs with so many columns.
    pub(super) fn new(width: usize, backend: &B) -> Result<Self> {
        let len = width * width;
        Ok(Self { width, tokens: 0, product: backend.zeros(len)?, sums: vec![0.0; len] })
    }

    /// Adds `x [tokens, width]`.
    pub(super) fn add(&mut self, backend: &B, tokens: usize, x: &B::Floats) -> Result<()> {
        let args = LinearArgs::new(tokens, self.width, self.width);
        backend.linear_weight_gradient(args, x, x, &mut self.product)?;
        let product = backend.download(&self.product, self.sums.len())?;
        if let Some(index) = product.iter().position(|sum| !sum.is_finite()) {
            let tensor = "gptq: products of the inputs".into();
            return Err(Error::NonFinite { tensor, index, value: product[index] });
        }
        self.sums.par_iter_mut().zip(product).for_each(|(sum, product)| *sum += f64::from(product));
        self.tokens += tokens;
        Ok(())
    }

    /// `[width, width]`, symmetric to the bit: of the two sums of a pair, which a product may round
    /// in two ways, the one above the diagonal.
    pub(super) fn finish(self) -> Vec<f64> {
        let Self { width, tokens, sums, .. } = self;
        let mut hessian = vec![0.0; sums.len()];
        hessian.par_chunks_mut(width).enumerate().for_each(|(i, row)| {
            for (k, h) in row.iter_mut().enumerate() {
                *h = 2.0 * sums[i.min(k) * width + i.max(k)] / tokens as f64;
            }
        });
        hessian
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;

    #[test]
    fn it_is_twice_the_mean_product_over_all_windows() {
        let mut hessian = Hessian::new(2, &Cpu).unwrap();
        hessian.add(&Cpu, 1, &vec![1.0, 2.0]).unwrap();
        // More than the window's tokens may stand in the buffer.
        hessian.add(&Cpu, 1, &vec![3.0, -4.0, 9.0, 9.0]).unwrap();
        assert_eq!(hessian.finish(), [10.0, -10.0, -10.0, 20.0]);
    }

    #[test]
    fn inputs_that_are_no_numbers_are_refused() {
        let mut hessian = Hessian::new(1, &Cpu).unwrap();
        let refused = hessian.add(&Cpu, 1, &vec![f32::INFINITY]).unwrap_err().to_string();
        assert!(refused.contains("products of the inputs is not finite"), "{refused}");
    }
}
