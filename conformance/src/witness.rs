//! What binary64 says about a request: the evidence that a case has what it claims to test.
//!
//! A test of clipping without a clipped weight passes whatever the clipping does. So a case that
//! claims something is held against its witness when it is made.

use std::ops::Range;

use crate::case::Request;
use crate::ops::quantizer::{Element, Grid};
use crate::ops::{self, Class, Operation};
use crate::precision::{Precision, Unit};
use crate::tensor::{Tensor, Tensors};

/// A request in binary64 with its answer and its quantizer arguments.
#[derive(Debug)]
pub struct Witness {
    /// The request.
    pub request: Request,
    /// Its outputs, from the f64 reference.
    pub outputs: Tensors,
    /// The arguments of its codes, where the operation has a uniform grid. Errors are those of
    /// binary32: an argument with error 0 is exact in both precisions.
    pub grid: Option<Grid>,
}

impl Witness {
    /// # Errors
    /// Where the reference refuses the request.
    pub fn of(request: &Request) -> Result<Self, String> {
        let request = request.to_precision(Precision::F64);
        let outputs = (request.op.run.f64)(&request)?;
        let grid = grid(&request)?;
        Ok(Self { request, outputs, grid })
    }

    /// The input or else the output of that name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.request.inputs.get(name).or_else(|| self.outputs.get(name))
    }

    /// What is there to be tested.
    pub fn features(&self) -> Features {
        let mut features = Features {
            outputs: self.outputs.len(),
            zero_outputs: self.outputs.values().filter(|output| is_zero(output)).count(),
            non_zero_gradients: self.gradients().filter(|gradient| !is_zero(gradient)).count(),
            ..Features::default()
        };
        let Some(grid) = &self.grid else { return features };
        for element in &grid.elements {
            let place = Place::of(element, grid);
            features.clipped += usize::from(place == Place::Beyond);
            features.inside += usize::from(place == Place::Inside);
            features.on_an_end += usize::from(place == Place::OnAnEnd);
            features.ties += usize::from(tie(element, grid).is_some());
            features.open += usize::from(element.at_tie(grid.ends));
        }
        features.raised = grid.raised.iter().filter(|raised| **raised).count();
        features.several_groups = usize::from(grid.scale.ncols() > 1);
        features.one_group = usize::from(grid.scale.ncols() == 1);
        let unlike = grid.scale.rows().into_iter().any(|row| row.iter().any(|s| *s != row[0]));
        features.unlike_groups = usize::from(unlike);
        features
    }

    fn gradients(&self) -> impl Iterator<Item = &Tensor> {
        self.outputs.iter().filter(|(name, _)| name.starts_with("d_")).map(|(_, tensor)| tensor)
    }
}

/// The groups of a tensor: of `group_size` or `block_size` elements, or else its rows.
pub fn groups(request: &Request, tensor: &Tensor) -> Vec<Range<usize>> {
    let size = |name: &str| request.params.0.get(name).and_then(serde_json::Value::as_u64);
    let row = tensor.shape().last().copied().unwrap_or(1);
    // GPTQ has both: its block is no group.
    let grouped = request.op.params.contains(&"group_size");
    let size = if grouped { size("group_size") } else { size("block_size") };
    let size = size.map_or(row, |size| size as usize).max(1);
    let starts = (0..tensor.len()).step_by(size);
    starts.map(|start| start..(start + size).min(tensor.len())).collect()
}

/// Whether every element is zero; not where there is none.
pub fn is_zero(tensor: &Tensor) -> bool {
    !tensor.is_empty() && tensor.values().all(|value| value == 0.0)
}

/// Counts over one case, and sums of them over several.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Arguments beyond the ends of the grid.
    pub clipped: usize,
    /// Arguments between the ends.
    pub inside: usize,
    /// Arguments on an end, exactly.
    pub on_an_end: usize,
    /// Arguments halfway between two codes, in every precision.
    pub ties: usize,
    /// Arguments whose code binary32 leaves open.
    pub open: usize,
    /// Scales that the floor raised.
    pub raised: usize,
    /// Cases with more than one group in a row.
    pub several_groups: usize,
    /// Cases with one group per row.
    pub one_group: usize,
    /// Cases in which the groups of a row have different scales.
    pub unlike_groups: usize,
    /// Outputs whose name begins with `d_` and that are not zero throughout.
    pub non_zero_gradients: usize,
    /// Outputs.
    pub outputs: usize,
    /// Outputs that are zero throughout: a subject that answers nothing but zeros passes those.
    pub zero_outputs: usize,
}

impl std::ops::AddAssign for Features {
    fn add_assign(&mut self, other: Self) {
        self.clipped += other.clipped;
        self.inside += other.inside;
        self.on_an_end += other.on_an_end;
        self.ties += other.ties;
        self.open += other.open;
        self.raised += other.raised;
        self.several_groups += other.several_groups;
        self.one_group += other.one_group;
        self.unlike_groups += other.unlike_groups;
        self.non_zero_gradients += other.non_zero_gradients;
        self.outputs += other.outputs;
        self.zero_outputs += other.zero_outputs;
    }
}

/// Where an argument lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Inside,
    OnAnEnd,
    Beyond,
}

impl Place {
    pub(crate) fn of(element: &Element, grid: &Grid) -> Self {
        let place = element.argument + element.zero_point;
        if place < grid.ends.low || place > grid.ends.high {
            Self::Beyond
        } else if place == grid.ends.low || place == grid.ends.high {
            Self::OnAnEnd
        } else {
            Self::Inside
        }
    }
}

/// A tie between two codes of the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tie {
    /// Whether the integer below it is odd, so that the even one lies above.
    pub odd: bool,
    pub negative: bool,
}

/// The tie that an argument lies on, exactly in every precision.
pub(crate) fn tie(element: &Element, grid: &Grid) -> Option<Tie> {
    let Element { argument, error, .. } = *element;
    let (distance, _) = element.nearest_tie(grid.ends);
    let odd = argument.floor().rem_euclid(2.0) == 1.0;
    (error == 0.0 && distance == 0.0).then_some(Tie { odd, negative: argument < 0.0 })
}

/// The arguments of an operation that answers codes, or whose forward does, or of any other that
/// takes a weight and its grid.
fn grid(request: &Request) -> Result<Option<Grid>, String> {
    let unit = Unit::of(Precision::F32);
    let forward = ops::find(&request.op.name.replace(".backward", ".forward"));
    for op in [Ok(request.op), forward].into_iter().flatten() {
        if let Some(grid) = op.grid {
            return grid(&on_its_grid(request, op)?, unit).map(Some);
        }
    }
    // The grid of LR-QAT lies about a rounded weight: its codes have a judgement of their own.
    let has = |name: &str| request.inputs.contains_key(name);
    if has("weight") && has("scale") && !request.op.name.starts_with("lr_qat.") {
        let low_rank = has("lora_a") && !request.op.name.starts_with("qat_lora.");
        let grid = if low_rank { Grid::new } else { Grid::of_weight };
        return grid(request, unit).map(Some);
    }
    Ok(None)
}

/// The request to `op` with the grid among its inputs, where the operation answers that.
fn on_its_grid(request: &Request, op: &'static Operation) -> Result<Request, String> {
    let mut request = Request { op, ..request.clone() };
    let answered: Vec<_> =
        op.outputs.iter().filter(|spec| matches!(spec.class, Class::Grid(_))).collect();
    if !answered.is_empty() {
        let outputs = (op.run.f64)(&request)?;
        for spec in answered {
            request.inputs.insert(spec.name.to_string(), outputs[&*spec.name].clone());
        }
    }
    Ok(request)
}
