use plumbline_reference::spec::{InitScaleRule, QuantSpec};

use super::InitScale;
use crate::cuda::{Argument, Cuda, INIT_SCALE, Kernel, Launcher, Shape, Values};
use crate::error::Result;

const KERNEL: Kernel = Kernel { module: &INIT_SCALE, entry: "init_scale" };

/// Groups of a block, and its threads.
const GROUPS: u32 = 128;

/// A rule as the kernel takes it.
struct KernelRule {
    /// Place in the kernel's list.
    place: u32,
    /// What the largest magnitude is divided by, where it is.
    divisor: f32,
    p: f64,
    steps: usize,
}

impl KernelRule {
    fn new(rule: InitScaleRule, spec: QuantSpec) -> Self {
        let (qmax, half_range) = (spec.qmax() as f32, -spec.qmin() as f32);
        let plain = |place| Self { place, divisor: 1.0, p: 0.0, steps: 0 };
        let absmax = |divisor| Self { divisor, ..plain(3) };
        match rule {
            InitScaleRule::L4q => plain(0),
            InitScaleRule::Lsq => plain(1),
            InitScaleRule::LsqPlus => plain(2),
            InitScaleRule::Symmetric => absmax(half_range),
            InitScaleRule::MinMax => absmax(qmax),
            InitScaleRule::LitGpt => {
                absmax(if spec.bits().count() == 4 { qmax } else { half_range })
            }
            InitScaleRule::Asymmetric => plain(4),
            InitScaleRule::Lp { p, steps } => Self { p, steps, ..plain(5) },
        }
    }
}

impl<L: Launcher> InitScale for Cuda<L> {
    fn init_scale(
        &self,
        spec: QuantSpec,
        rule: InitScaleRule,
        out_features: usize,
        weight: &Values<L>,
        scale: &mut Values<L>,
        offset: &mut Values<L>,
    ) -> Result<()> {
        let groups = out_features * spec.groups();
        let weight = weight.first("init_scale", "weight", out_features * spec.in_features())?;
        let scale = scale.first_mut("init_scale", "scale", groups)?;
        let offset = offset.first_mut("init_scale", "offset", groups)?;
        let rule = KernelRule::new(rule, spec);
        self.status.with("init_scale", |status, first| {
            self.launcher.launch(
                KERNEL,
                Shape::line(groups.div_ceil(GROUPS as usize), GROUPS),
                &mut [
                    Argument::In(weight),
                    Argument::Out(scale),
                    Argument::Out(offset),
                    Argument::U64(groups as u64),
                    Argument::side(spec.group_size()),
                    Argument::F32(spec.qmin() as f32),
                    Argument::F32(spec.qmax() as f32),
                    Argument::U32(rule.place),
                    Argument::F32(rule.divisor),
                    Argument::F64(rule.p),
                    Argument::U64(rule.steps as u64),
                    Argument::Out(status),
                    Argument::U32(first),
                ],
            )
        })
    }
}
