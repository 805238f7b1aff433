//! A method on the layers that a recipe chooses.

use plumbline_reference::spec::{ActivationSpec, Bits};

use super::{LayerStart, Method};
use crate::backend::Backend;
use crate::error::Result;
use crate::export::Format;
use crate::methods::{Frozen, LayerCost, Targeted, frozen_cost};
use crate::model::Projection;
use crate::ops::widen::WeightType;
use crate::recipe::{
    L4qSettings, LoraSettings, LrQatSettings, MethodRecipe, PeqaSettings, QaLoraSettings,
    QatLoraSettings, QatSettings, QloraSettings,
};

/// Settings whose grid can be another.
pub trait OnGrid: Method + Clone {
    /// The same settings on that grid; as they are where the method has no codes.
    #[must_use]
    fn with_grid(&self, bits: Bits, group_size: Option<usize>) -> Self;
}

macro_rules! on_grid {
    ($($settings:ident),*) => {$(
        impl OnGrid for $settings {
            fn with_grid(&self, bits: Bits, group_size: Option<usize>) -> Self {
                Self { bits, group_size, ..self.clone() }
            }
        }
    )*};
}

on_grid!(L4qSettings, LrQatSettings, PeqaSettings, QaLoraSettings, QatSettings, QloraSettings);

impl OnGrid for QatLoraSettings {
    fn with_grid(&self, bits: Bits, group_size: Option<usize>) -> Self {
        Self(self.0.with_grid(bits, group_size))
    }
}

impl OnGrid for LoraSettings {
    fn with_grid(&self, _bits: Bits, _group_size: Option<usize>) -> Self {
        self.clone()
    }
}

/// A method on the layers that a recipe chooses, each on its own grid; the others stay as they are.
#[derive(Debug, Clone, Copy)]
pub struct Targets<'a, M> {
    method: &'a M,
    recipe: &'a MethodRecipe,
}

impl MethodRecipe {
    /// The layers of `method`, which are the recipe's settings, that this recipe chooses.
    pub fn on<'a, M: OnGrid>(&'a self, method: &'a M) -> Targets<'a, M> {
        Targets { method, recipe: self }
    }
}

impl<M: OnGrid> Targets<'_, M> {
    /// The settings for a layer; `None` where the method is not on it.
    fn of(&self, linear: &Projection) -> Option<M> {
        let name = &linear.name;
        self.recipe.is_target(name).then(|| match self.method.grid() {
            None => self.method.clone(),
            Some(grid) => {
                let (bits, group_size) = self.recipe.grid_of(name, grid);
                self.method.with_grid(bits, group_size)
            }
        })
    }
}

impl<M: OnGrid> Method for Targets<'_, M> {
    type Layer<B: Backend> = Targeted<B, M::Layer<B>>;

    fn grid(&self) -> Option<(Bits, Option<usize>)> {
        self.method.grid()
    }

    fn grid_of(&self, linear: &Projection) -> Option<(Bits, Option<usize>)> {
        self.of(linear)?.grid()
    }

    fn activations(&self) -> Option<ActivationSpec> {
        self.method.activations()
    }

    fn target(&self) -> Option<Format> {
        self.method.target()
    }

    fn cost(&self, linear: &Projection, stored: WeightType) -> Result<LayerCost> {
        match self.of(linear) {
            Some(method) => method.cost(linear, stored),
            None => Ok(frozen_cost((linear.out_features, linear.in_features), stored)),
        }
    }

    fn layer<B: Backend>(&self, backend: &B, at: LayerStart<'_>) -> Result<Self::Layer<B>> {
        Ok(match self.of(at.linear) {
            Some(method) => Targeted::Method(method.layer(backend, at)?),
            None => {
                let shape = (at.linear.out_features, at.linear.in_features);
                Targeted::Frozen(Frozen::new(backend, &at.weight, shape)?)
            }
        })
    }
}
