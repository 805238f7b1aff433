use super::{Linear, LinearArgs};
use crate::cuda::{Cuda, Launcher, Product, Values};
use crate::error::Result;
use crate::ops::Write;

impl<L: Launcher> Linear for Cuda<L> {
    fn linear(
        &self,
        args: LinearArgs,
        x: &Values<L>,
        weight: &Values<L>,
        y: &mut Values<L>,
    ) -> Result<()> {
        let LinearArgs { tokens, in_features, out_features, multiplier, write } = args;
        let product = Product {
            rows: tokens,
            columns: out_features,
            inner: in_features,
            a_transposed: false,
            b_transposed: true,
            multiplier,
            add: write == Write::Add,
        };
        self.launcher.product(
            product,
            x.first("linear", "x", tokens * in_features)?,
            weight.first("linear", "weight", out_features * in_features)?,
            y.first_mut("linear", "y", tokens * out_features)?,
        )
    }

    fn linear_input_gradient(
        &self,
        args: LinearArgs,
        d_y: &Values<L>,
        weight: &Values<L>,
        d_x: &mut Values<L>,
    ) -> Result<()> {
        const NAME: &str = "linear_input_gradient";
        let LinearArgs { tokens, in_features, out_features, multiplier, write } = args;
        let product = Product {
            rows: tokens,
            columns: in_features,
            inner: out_features,
            a_transposed: false,
            b_transposed: false,
            multiplier,
            add: write == Write::Add,
        };
        self.launcher.product(
            product,
            d_y.first(NAME, "d_y", tokens * out_features)?,
            weight.first(NAME, "weight", out_features * in_features)?,
            d_x.first_mut(NAME, "d_x", tokens * in_features)?,
        )
    }

    fn linear_weight_gradient(
        &self,
        args: LinearArgs,
        d_y: &Values<L>,
        x: &Values<L>,
        d_weight: &mut Values<L>,
    ) -> Result<()> {
        const NAME: &str = "linear_weight_gradient";
        let LinearArgs { tokens, in_features, out_features, multiplier, write } = args;
        let product = Product {
            rows: out_features,
            columns: in_features,
            inner: tokens,
            a_transposed: true,
            b_transposed: false,
            multiplier,
            add: write == Write::Add,
        };
        self.launcher.product(
            product,
            d_y.first(NAME, "d_y", tokens * out_features)?,
            x.first(NAME, "x", tokens * in_features)?,
            d_weight.first_mut(NAME, "d_weight", out_features * in_features)?,
        )
    }
}
