use super::{Linear, LinearArgs};
use crate::cuda::{
    Argument, Compute, Cuda, Kernel, LINEAR, Launcher, Product, Shape, Values, Workspace,
};
use crate::error::Result;
use crate::ops::Write;

const ROUND: Kernel = Kernel { module: &LINEAR, entry: "round_to_bf16" };
const THREADS: u32 = 256;

/// A matrix of f32, and the matrix of whole tiles that it is rounded into.
#[derive(Clone, Copy)]
pub(crate) struct Padded {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// At least `rows`.
    pub(crate) padded_rows: usize,
    /// At least `columns`, a multiple of 4.
    pub(crate) pitch: usize,
}

impl Padded {
    /// Values in a row, without padding that a product could see.
    fn line(len: usize) -> Self {
        Self { rows: 1, columns: len, padded_rows: 1, pitch: len.next_multiple_of(4) }
    }

    /// Words of the rounded matrix.
    fn words(self) -> usize {
        (self.padded_rows * self.pitch).div_ceil(4)
    }
}

/// An operand: its name in errors, and its values.
type Named<'a, L> = (&'static str, &'a Values<L>);

impl<L: Launcher> Cuda<L> {
    /// Runs `call` with f32 values rounded to bf16, zeros around them.
    pub(crate) fn with_rounded<R>(
        &self,
        room: &Workspace<L>,
        values: &L::Buffer,
        shape: Padded,
        call: impl FnOnce(&L::Buffer) -> Result<R>,
    ) -> Result<R> {
        let Padded { rows, columns, padded_rows, pitch } = shape;
        room.with(&self.launcher, shape.words(), |rounded| {
            self.launcher.launch(
                ROUND,
                Shape::line(padded_rows * pitch.div_ceil(4 * THREADS as usize), THREADS),
                &mut [
                    Argument::In(values),
                    Argument::Out(rounded),
                    Argument::U64(rows as u64),
                    Argument::U64(columns as u64),
                    Argument::U64(pitch as u64),
                ],
            )?;
            call(rounded)
        })
    }

    /// Runs `call` with an operand as the backend multiplies it.
    fn with_operand<R>(
        &self,
        room: &Workspace<L>,
        operation: &'static str,
        (name, values): Named<'_, L>,
        len: usize,
        call: impl FnOnce(&L::Buffer) -> Result<R>,
    ) -> Result<R> {
        match self.compute {
            Compute::F32 => call(values.first(operation, name, len)?),
            Compute::Bf16 => match values.operand(operation, name, len)? {
                (rounded, Compute::Bf16) => call(rounded),
                (values, Compute::F32) => self.with_rounded(room, values, Padded::line(len), call),
            },
        }
    }

    /// A product whose operands are rounded first, once, where the backend says so.
    fn multiply(
        &self,
        operation: &'static str,
        product: Product,
        a: Named<'_, L>,
        b: Named<'_, L>,
        (name, out): (&'static str, &mut Values<L>),
    ) -> Result<()> {
        let Product { rows, columns, inner, .. } = product;
        let out = out.first_mut(operation, name, rows * columns)?;
        let [left, right] = &self.rounded;
        self.with_operand(left, operation, a, rows * inner, |a| {
            self.with_operand(right, operation, b, inner * columns, |b| {
                self.launcher.product(product, a, b, out)
            })
        })
    }
}

impl<L: Launcher> Linear for Cuda<L> {
    fn linear(
        &self,
        args: LinearArgs,
        x: &Values<L>,
        weight: &Values<L>,
        y: &mut Values<L>,
    ) -> Result<()> {
        let product = Product {
            rows: args.tokens,
            columns: args.out_features,
            inner: args.in_features,
            a_transposed: false,
            b_transposed: true,
            multiplier: args.multiplier,
            add: args.write == Write::Add,
            operands: self.compute,
        };
        self.multiply("linear", product, ("x", x), ("weight", weight), ("y", y))
    }

    fn linear_input_gradient(
        &self,
        args: LinearArgs,
        d_y: &Values<L>,
        weight: &Values<L>,
        d_x: &mut Values<L>,
    ) -> Result<()> {
        const NAME: &str = "linear_input_gradient";
        let product = Product {
            rows: args.tokens,
            columns: args.in_features,
            inner: args.out_features,
            a_transposed: false,
            b_transposed: false,
            multiplier: args.multiplier,
            add: args.write == Write::Add,
            operands: self.compute,
        };
        self.multiply(NAME, product, ("d_y", d_y), ("weight", weight), ("d_x", d_x))
    }

    fn linear_weight_gradient(
        &self,
        args: LinearArgs,
        d_y: &Values<L>,
        x: &Values<L>,
        d_weight: &mut Values<L>,
    ) -> Result<()> {
        const NAME: &str = "linear_weight_gradient";
        let product = Product {
            rows: args.out_features,
            columns: args.in_features,
            inner: args.tokens,
            a_transposed: true,
            b_transposed: false,
            multiplier: args.multiplier,
            add: args.write == Write::Add,
            operands: self.compute,
        };
        self.multiply(NAME, product, ("d_y", d_y), ("x", x), ("d_weight", d_weight))
    }
}
