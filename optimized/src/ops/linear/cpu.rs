use super::{Linear, LinearArgs};
use crate::cpu::{
    Cpu,
    gemm::{Matrix, Threads, product},
};
use crate::error::Result;
use crate::ops::{Write, prefix, prefix_mut};

impl Linear for Cpu {
    fn linear(
        &self,
        args: LinearArgs,
        x: &Vec<f32>,
        weight: &Vec<f32>,
        y: &mut Vec<f32>,
    ) -> Result<()> {
        let LinearArgs { tokens, in_features, out_features, multiplier, write } = args;
        let x = prefix("linear", "x", x, tokens * in_features)?;
        let weight = prefix("linear", "weight", weight, out_features * in_features)?;
        let y = prefix_mut("linear", "y", y, tokens * out_features)?;
        let x = Matrix::new(x, tokens, in_features);
        let weight = Matrix::new(weight, out_features, in_features);
        let add = write == Write::Add;
        product(y, out_features, x, weight.t(), multiplier, add, Threads::Pool);
        Ok(())
    }

    fn linear_input_gradient(
        &self,
        args: LinearArgs,
        d_y: &Vec<f32>,
        weight: &Vec<f32>,
        d_x: &mut Vec<f32>,
    ) -> Result<()> {
        let LinearArgs { tokens, in_features, out_features, multiplier, write } = args;
        let d_y = prefix("linear_input_gradient", "d_y", d_y, tokens * out_features)?;
        let weight = prefix("linear_input_gradient", "weight", weight, out_features * in_features)?;
        let d_x = prefix_mut("linear_input_gradient", "d_x", d_x, tokens * in_features)?;
        let d_y = Matrix::new(d_y, tokens, out_features);
        let weight = Matrix::new(weight, out_features, in_features);
        let add = write == Write::Add;
        product(d_x, in_features, d_y, weight, multiplier, add, Threads::Pool);
        Ok(())
    }

    fn linear_weight_gradient(
        &self,
        args: LinearArgs,
        d_y: &Vec<f32>,
        x: &Vec<f32>,
        d_weight: &mut Vec<f32>,
    ) -> Result<()> {
        let LinearArgs { tokens, in_features, out_features, multiplier, write } = args;
        let d_y = prefix("linear_weight_gradient", "d_y", d_y, tokens * out_features)?;
        let x = prefix("linear_weight_gradient", "x", x, tokens * in_features)?;
        let len = out_features * in_features;
        let d_weight = prefix_mut("linear_weight_gradient", "d_weight", d_weight, len)?;
        let d_y = Matrix::new(d_y, tokens, out_features);
        let x = Matrix::new(x, tokens, in_features);
        let add = write == Write::Add;
        product(d_weight, in_features, d_y.t(), x, multiplier, add, Threads::Pool);
        Ok(())
    }
}
