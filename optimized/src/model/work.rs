//! What a training step must do at least: floating-point operations, bytes, and from both the time
//! that a device cannot go below.

use plumbline_reference::spec::LlamaConfig;
use serde::Serialize;

use super::Recompute;
use crate::methods::LayerCost;
use crate::ops::adamw::StateType;

/// Floating-point operations of a step, a product and a sum counted as two.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Operations {
    /// The linear layers of the blocks under their method.
    pub linears: f64,
    /// The output projection and its input gradient.
    pub head: f64,
    /// Scores and weighted sums of the visible pairs of positions.
    pub attention: f64,
}

/// Bytes that a step cannot but move to or from memory.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bytes {
    /// The linear layers: their weights in every pass, inputs and outputs, gradients.
    pub linears: f64,
    /// The table of the output projection twice, and its inputs.
    pub head: f64,
    /// 28 for each trained value: value, gradient and moments in, all but the gradient out.
    pub optimizer: f64,
}

/// A step by what it has to do.
#[derive(Debug, Clone)]
pub struct StepWork {
    /// All operations.
    pub operations: Operations,
    /// All bytes.
    pub bytes: Bytes,
    /// Operations and bytes of each linear layer.
    layers: Vec<(f64, f64)>,
}

/// What a device can do at most.
#[derive(Debug, Serialize)]
pub struct DeviceSpeed {
    /// What plans call it.
    pub name: &'static str,
    /// A part of the name that its driver gives it.
    #[serde(skip)]
    driver_name: &'static str,
    /// Operations a second with bf16 operands and f32 sums, without sparsity.
    pub bf16: f64,
    /// Operations a second in f32.
    pub f32: f64,
    /// Bytes of memory a second.
    pub memory: f64,
    /// Where the numbers are from.
    pub source: &'static str,
}

/// Known devices. A data sheet's number is a ceiling that no program reaches; a measured one is.
pub const DEVICES: &[DeviceSpeed] = &[
    DeviceSpeed {
        name: "A100-80GB",
        driver_name: "A100-SXM4-80GB",
        bf16: 312e12,
        f32: 19.5e12,
        memory: 2.039e12,
        source: "data sheet",
    },
    DeviceSpeed {
        name: "H100-SXM",
        driver_name: "H100 80GB HBM3",
        bf16: 989e12,
        f32: 67e12,
        memory: 3.35e12,
        source: "data sheet",
    },
    DeviceSpeed {
        name: "H200",
        driver_name: "H200",
        bf16: 790e12,
        f32: 67e12,
        memory: 4.3e12,
        source: "bf16 and memory measured, f32 data sheet",
    },
    DeviceSpeed {
        name: "RTX-4090",
        driver_name: "RTX 4090",
        bf16: 165.2e12,
        f32: 82.6e12,
        memory: 1.008e12,
        source: "data sheet",
    },
];

impl DeviceSpeed {
    /// The device that a driver calls so.
    pub fn of_driver(name: &str) -> Option<&'static Self> {
        DEVICES.iter().find(|device| name.contains(device.driver_name))
    }

    /// Operations a second with operands of so many bytes.
    fn rate(&self, operand_bytes: usize) -> f64 {
        if operand_bytes == 2 { self.bf16 } else { self.f32 }
    }
}

/// Bytes that AdamW moves for each value: it reads the gradient, and reads and writes the parameter
/// and its moments.
fn optimizer_bytes(state: StateType) -> f64 {
    (4 + 2 * 4 + 2 * 2 * state.bytes()) as f64
}

impl StepWork {
    /// Of one micro-batch: `tokens` tokens in sequences of `context`, operands of products in
    /// `operand_bytes` bytes. `layers` are those of [`super::Projection::all`].
    pub fn new(
        config: &LlamaConfig,
        layers: &[LayerCost],
        (tokens, context): (usize, usize),
        recompute: Recompute,
        operand_bytes: usize,
        state: StateType,
    ) -> Self {
        // The last block's activations are still there when its backward begins.
        let again =
            |block: usize| recompute == Recompute::Blocks && block + 1 < config.num_hidden_layers;
        let trained: usize = layers.iter().flat_map(|layer| &layer.trained).sum();
        let per_block = layers.len() / config.num_hidden_layers;
        let layers: Vec<(f64, f64)> = layers
            .iter()
            .enumerate()
            .map(|(index, layer)| of_layer(layer, tokens, operand_bytes, again(index / per_block)))
            .collect();
        let (count, hidden) = (tokens as f64, config.hidden_size as f64);
        let table = config.vocab_size as f64 * hidden;
        let pairs = count * (context as f64 + 1.0) / 2.0;
        let heads = (config.num_attention_heads * config.head_dim) as f64;
        let blocks = config.num_hidden_layers;
        let forwards = (0..blocks).map(|block| if again(block) { 2.0 } else { 1.0 }).sum::<f64>();
        Self {
            operations: Operations {
                linears: layers.iter().map(|(operations, _)| operations).sum(),
                head: 4.0 * count * table,
                attention: pairs * heads * (4.0 * forwards + 10.0 * blocks as f64),
            },
            bytes: Bytes {
                linears: layers.iter().map(|(_, bytes)| bytes).sum(),
                head: 2.0 * 4.0 * table + 3.0 * count * hidden * operand_bytes as f64,
                optimizer: optimizer_bytes(state) * trained as f64,
            },
            layers,
        }
    }
    /// Operations of linear layers and head, which is what rates are usually given for.
    pub fn products(&self) -> f64 {
        self.operations.linears + self.operations.head
    }

    /// Seconds that a device needs at least: each linear layer its operations or its bytes,
    /// whichever takes longer, and so the head; then attention and the optimizer. Normalisations,
    /// rotations and gates are left out.
    pub fn floor(&self, device: &DeviceSpeed, operand_bytes: usize) -> f64 {
        let rate = device.rate(operand_bytes);
        let longer =
            |(operations, bytes): (f64, f64)| (operations / rate).max(bytes / device.memory);
        let linears: f64 = self.layers.iter().copied().map(longer).sum();
        let head = longer((self.operations.head, self.bytes.head));
        linears + head + self.operations.attention / rate + self.bytes.optimizer / device.memory
    }
}

/// Operations and bytes of one layer; `again` where its forward runs twice.
fn of_layer(layer: &LayerCost, tokens: usize, operand_bytes: usize, again: bool) -> (f64, f64) {
    let forwards = if again { 2.0 } else { 1.0 };
    let operations =
        forwards * layer.forward_operations(tokens) + layer.backward_operations(tokens);
    // A backward reads the weight for the gradient of the input, and once more for what lies
    // between its own gradient and that of what is trained.
    let backwards = if layer.weight_gradient { 2.0 } else { 1.0 };
    let passes = (forwards + backwards) * layer.weight_bytes() as f64;
    // A forward reads x and writes y; a backward reads d_y, writes d_x, and reads x and d_y again.
    let side = (tokens * (layer.shape.0 + layer.shape.1) * operand_bytes) as f64;
    let gradients = 4.0 * layer.trained.iter().sum::<usize>() as f64;
    (operations, passes + (forwards + 2.0) * side + gradients)
}

#[cfg(test)]
mod tests {
    use plumbline_reference::spec::{Bits, GradScale, InitScaleRule, QuantSpec};

    use super::*;
    use crate::methods::{L4qOptions, LoraOptions};
    use crate::model::{Projection, preset};
    use crate::ops::widen::WeightType;

    fn of(name: &str, layer: impl Fn(&Projection) -> LayerCost, recompute: Recompute) -> StepWork {
        let config = preset(name).unwrap();
        let layers: Vec<LayerCost> = Projection::all(&config).iter().map(layer).collect();
        StepWork::new(&config, &layers, (2048, 2048), recompute, 2, StateType::F32)
    }

    fn l4q(linear: &Projection) -> LayerCost {
        let spec = QuantSpec::new(Bits::new(4).unwrap(), Some(128), linear.in_features).unwrap();
        let (init, grad_scale, scale_rule) = (InitScaleRule::default(), GradScale::None, None);
        L4qOptions { spec, rank: 16, lora_scaling: 2.0, init, grad_scale, scale_rule }
            .cost(linear.out_features, WeightType::F32)
    }

    fn lora(linear: &Projection) -> LayerCost {
        let shape = (linear.out_features, linear.in_features);
        LoraOptions { rank: 16, lora_scaling: 2.0 }.cost(shape, WeightType::F32)
    }

    /// Weights of the linear layers of LLaMA-2-7B.
    const WEIGHTS: f64 = 6.476e9;

    fn close(actual: f64, expected: f64) -> bool {
        (actual / expected - 1.0).abs() < 0.001
    }

    #[test]
    fn a_token_costs_six_or_four_operations_a_weight_and_two_more_with_recomputing() {
        let per_weight = |work: StepWork| work.operations.linears / 2048.0 / WEIGHTS;
        // The update inside the quantizer: 8 rank operations a weight and step.
        let inside = 8.0 * 16.0 / 2048.0;
        assert!(close(per_weight(of("llama-2-7b", l4q, Recompute::None)), 6.0 + inside));
        let again = per_weight(of("llama-2-7b", l4q, Recompute::Blocks));
        assert!(close(again, 6.0 + inside + (2.0 + inside / 4.0) * 31.0 / 32.0), "{again}");
        let beside = per_weight(of("llama-2-7b", lora, Recompute::None));
        let factors = 39_976_960.0;
        assert!(close(beside, 4.0 + 6.0 * factors / WEIGHTS), "{beside}");
    }

    /// 790 TFLOP/s over `6 * 6.476e9 + 4 * 32000 * 4096` operations a token are 20.1 thousand
    /// tokens a second; the update, the optimizer and the attention take a little more.
    #[test]
    fn the_floor_of_a_device_is_that_of_its_rate_where_products_decide() {
        let work = of("llama-2-7b", l4q, Recompute::None);
        let h200 = DeviceSpeed::of_driver("NVIDIA H200").unwrap();
        let floor = work.floor(h200, 2);
        let products = work.products() / h200.bf16;
        let attention = work.operations.attention / h200.bf16;
        let optimizer = work.bytes.optimizer / h200.memory;
        assert!(close(floor, products + attention + optimizer), "{floor} {products}");
        let rate = 2048.0 / (products * (6.0 / (6.0 + 8.0 * 16.0 / 2048.0)));
        assert!((20_000.0..20_300.0).contains(&rate), "{rate}");
        assert!(DeviceSpeed::of_driver("NVIDIA Unheard-of").is_none());
    }

    #[test]
    fn few_tokens_wait_for_memory() {
        let config = preset("llama-2-7b").unwrap();
        let layers: Vec<LayerCost> = Projection::all(&config).iter().map(l4q).collect();
        let work = StepWork::new(&config, &layers, (1, 1), Recompute::None, 2, StateType::F32);
        let h200 = DeviceSpeed::of_driver("NVIDIA H200").unwrap();
        // Each weight is read three times in four bytes.
        let least = 3.0 * 4.0 * WEIGHTS / h200.memory;
        let floor = work.floor(h200, 2);
        assert!((least..1.3 * least).contains(&floor), "{floor} {least}");
    }
}
