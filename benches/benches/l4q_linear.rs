//! The L4Q linear layer in criterion: forward and backward, on the backends that this machine has
//! and in the reference.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use ndarray::ArrayView2;
use plumbline::backend::Backend;
use plumbline::cpu::Cpu;
use plumbline::cuda::{Cuda, Gpu};
use plumbline_benches::{Inputs, L4Q_LINEAR, LLAMA_2_7B, LORA_SCALING, Layer, Shape};
use plumbline_reference::methods::l4q::L4q;
use plumbline_reference::spec::GradScale;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    backend(&mut criterion, "cpu", &L4Q_LINEAR, || Cpu);
    if Gpu::count() > 0 {
        let gpu = || Gpu::new(0).and_then(Cuda::new).expect("the driver shows a GPU");
        backend(&mut criterion, "cuda", &LLAMA_2_7B, gpu);
    } else {
        println!("l4q_linear/cuda: ignored, the driver shows no GPU");
    }
    reference(&mut criterion);
    criterion.final_summary();
}

/// Throughput is in tokens.
fn tokens(shape: Shape) -> Throughput {
    Throughput::Elements(shape.tokens as u64)
}

fn backend<B: Backend>(
    criterion: &mut Criterion,
    name: &str,
    shapes: &[Shape],
    open: impl Fn() -> B,
) {
    let mut group = criterion.benchmark_group(format!("l4q_linear/{name}"));
    group.sample_size(20);
    for &shape in shapes {
        let inputs = Inputs::new(shape).expect("the shapes are valid");
        let mut layer =
            Layer::new(open(), inputs, Inputs::l4q).expect("the layer fits into memory");
        group.throughput(tokens(shape));
        group.bench_function(BenchmarkId::new("forward", shape), |bencher| {
            bencher.iter(|| {
                layer.forward().and_then(|()| layer.wait()).expect("the inputs are finite")
            });
        });
        // Gradients add up from iteration to iteration, which costs what it costs in training.
        group.bench_function(BenchmarkId::new("backward", shape), |bencher| {
            bencher.iter(|| {
                layer.backward().and_then(|()| layer.wait()).expect("the inputs are finite")
            });
        });
    }
    group.finish();
}

/// One call of the naive loops takes about a second, so there is only the small shape, with ten
/// samples (criterion's least) of one call each. The times say how slow the definition is, no more.
fn reference(criterion: &mut Criterion) {
    let shape = L4Q_LINEAR[0];
    let inputs = Inputs::new(shape).expect("the shapes are valid");
    let Inputs { spec, x, weight, trained, d_y, .. } = &inputs;
    let layer = L4q::<f32> {
        weight: matrix(weight, shape.out_features),
        lora_a: matrix(&trained.lora_a, shape.rank),
        lora_b: matrix(&trained.lora_b, shape.out_features),
        scale: matrix(&trained.scale, shape.out_features),
        offset: matrix(&trained.offset, shape.out_features),
        lora_scaling: LORA_SCALING.into(),
        spec: *spec,
    };
    let (x, d_y) = (matrix(x, shape.tokens), matrix(d_y, shape.tokens));
    let mut group = criterion.benchmark_group("l4q_linear/reference");
    group.sample_size(10).sampling_mode(SamplingMode::Flat).throughput(tokens(shape));
    group.warm_up_time(Duration::from_millis(1)); // one call
    group.bench_function(BenchmarkId::new("forward", shape), |bencher| {
        bencher.iter(|| layer.forward(x).expect("the inputs are finite"));
    });
    group.bench_function(BenchmarkId::new("backward", shape), |bencher| {
        bencher.iter(|| layer.backward(x, d_y, GradScale::None).expect("the inputs are finite"));
    });
    group.finish();
}

fn matrix(values: &[f32], rows: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, values.len() / rows), values).expect("rows divide the values")
}
