//! Activations on grids that are taken from each token.

use plumbline::backend::Backend;
use plumbline::ops::dynamic_quantize::{DynamicCodes, DynamicQuantizeArgs};
use plumbline_reference::spec::ZeroPointRule;

use super::{Call, Refused};
use crate::params::Quantizer;
use crate::tensor::Tensors;

impl<B: Backend> Call<'_, B> {
    fn token_grids(&self) -> Result<DynamicQuantizeArgs, Refused> {
        let params = &self.request.params;
        let [tokens, in_features] = self.request.sizes("x")?;
        let spec = Quantizer::read(params)?.spec(in_features)?;
        let zero_point = params.optional("zero_point")?.unwrap_or_default();
        Ok(DynamicQuantizeArgs { tokens, spec, zero_point })
    }

    pub(super) fn dynamic_quantize(&self) -> Result<Tensors, Refused> {
        let args = self.token_grids()?;
        let (tokens, in_features) = (args.tokens, args.spec.in_features());
        let groups = [tokens, args.spec.groups()];
        let (x, mut output) = (self.floats("x")?, self.like("x")?);
        let mut codes = self.backend.zero_codes(tokens * in_features)?;
        let mut scale = self.backend.zeros(groups[0] * groups[1])?;
        let mut zero_point = self.backend.zeros(groups[0] * groups[1])?;
        let to = DynamicCodes { codes: &mut codes, scale: &mut scale, zero_point: &mut zero_point };
        self.backend.dynamic_quantize(args, &x, &mut output, Some(to))?;
        let mut outputs = crate::ops::tensors([
            ("scale", self.download(&scale, &groups)?),
            ("zero_point", self.download(&zero_point, &groups)?),
            ("output", self.download(&output, self.shape("x")?)?),
        ]);
        if args.zero_point == ZeroPointRule::Integer {
            let codes = self.unsigned_codes(&codes, [tokens, in_features])?;
            outputs.insert("codes".to_owned(), codes);
        }
        Ok(outputs)
    }

    pub(super) fn dynamic_quantize_backward(&self) -> Result<Tensors, Refused> {
        let (x, mut d) = (self.floats("x")?, self.floats("d_output")?);
        self.backend.dynamic_quantize_backward(self.token_grids()?, &x, &mut d)?;
        Ok(crate::ops::tensors([("d_x", self.download(&d, self.shape("x")?)?)]))
    }
}
