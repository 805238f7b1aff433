//! The optimizer's step: every tensor at once, moments in either type, the same bits on every
//! backend.

use plumbline::backend::Backend;
use plumbline::cpu::Cpu;
use plumbline::cuda::{Cuda, Interpreter};
use plumbline::ops::adamw::{AdamWArgs, AdamWTensor, GradientMultiplier, Moment, StateType};
use plumbline_reference::spec::AdamWSpec;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const STATES: [StateType; 2] = [StateType::F32, StateType::Bf16];

/// Around a vector of four values, a block of 8192, and several blocks.
const LENGTHS: [usize; 12] = [0, 1, 3, 4, 5, 1022, 8192, 0, 8193, 8191, 17_000, 0];

/// A fresh one each time, so that no buffer is larger than its shape asks for.
fn cuda() -> Cuda<Interpreter> {
    Cuda::new(Interpreter::with_orders(3)).unwrap()
}

fn floats(seed: u64, len: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| random.random_range(-1.0..1.0)).collect()
}

struct Tensor<B: Backend> {
    name: String,
    len: usize,
    parameter: B::Floats,
    first: Moment<B>,
    second: Moment<B>,
}

impl<B: Backend> Tensor<B> {
    fn new(backend: &B, name: &str, values: &[f32], state: StateType) -> Self {
        let zeros = || Moment::zeros(backend, values.len(), state).unwrap();
        Self {
            name: name.into(),
            len: values.len(),
            parameter: backend.upload(values).unwrap(),
            first: zeros(),
            second: zeros(),
        }
    }
}

/// Every tensor's parameter, first and second moment on the host.
type Values = Vec<[Vec<f32>; 3]>;

fn values<B: Backend>(backend: &B, tensors: &[Tensor<B>]) -> Values {
    let of = |tensor: &Tensor<B>| {
        [
            backend.download(&tensor.parameter, tensor.len).unwrap(),
            tensor.first.to_host(backend, tensor.len).unwrap(),
            tensor.second.to_host(backend, tensor.len).unwrap(),
        ]
    };
    tensors.iter().map(of).collect()
}

/// One step on gradients `[tensor][value]`; the rates differ from tensor to tensor.
fn step<B: Backend>(
    backend: &B,
    tensors: &mut [Tensor<B>],
    gradients: &[Vec<f32>],
    (step, factor, state): (u64, f64, StateType),
) -> plumbline::error::Result<()> {
    let sums = backend.upload_sums(&[7.0, factor]).unwrap();
    let gradients: Vec<_> = gradients.iter().map(|g| backend.upload(g).unwrap()).collect();
    let args = AdamWArgs { spec: AdamWSpec::new(0.9, 0.999, 1e-8).unwrap(), state };
    let mut asked: Vec<AdamWTensor<'_, B>> = tensors
        .iter_mut()
        .zip(&gradients)
        .enumerate()
        .map(|(index, (tensor, gradient))| AdamWTensor {
            name: &tensor.name,
            len: tensor.len,
            step,
            learning_rate: 3e-3 / (index + 1) as f64,
            weight_decay: 0.1 * index as f64,
            parameter: &mut tensor.parameter,
            gradient,
            first_moment: &mut tensor.first,
            second_moment: &mut tensor.second,
        })
        .collect();
    backend.adamw(args, GradientMultiplier { sums: &sums, slot: 1 }, &mut asked)
}

/// Three steps of tensors of these lengths with these factors on their gradients.
fn stepped<B: Backend>(
    backend: &B,
    lengths: &[usize],
    factors: [f64; 3],
    state: StateType,
) -> Values {
    let mut tensors: Vec<Tensor<B>> = lengths
        .iter()
        .enumerate()
        .map(|(i, len)| Tensor::new(backend, &format!("t{i}"), &floats(i as u64, *len), state))
        .collect();
    for (index, factor) in factors.into_iter().enumerate() {
        let gradient = |(i, len): (usize, &usize)| floats((100 * (index + 1) + i) as u64, *len);
        let gradients: Vec<Vec<f32>> = lengths.iter().enumerate().map(gradient).collect();
        let at = (index as u64 + 1, factor, state);
        step(backend, &mut tensors, &gradients, at).unwrap();
    }
    values(backend, &tensors)
}

fn bits(values: &Values) -> Vec<u32> {
    values.iter().flatten().flatten().map(|value| value.to_bits()).collect()
}

#[test]
fn a_step_of_many_tensors_has_the_bits_of_the_cpu() {
    for state in STATES {
        for factors in [[0.7, 0.1, 1.0], [0.7, f64::NAN, 0.3], [f64::INFINITY, 1e300, -0.5]] {
            let expected = stepped(&Cpu, &LENGTHS, factors, state);
            let actual = stepped(&cuda(), &LENGTHS, factors, state);
            assert!(bits(&actual) == bits(&expected), "{state:?} {factors:?}");
        }
        for lengths in [&[][..], &[0], &[5], &[8192]] {
            let factors = [1.0, 0.5, 0.25];
            let expected = stepped(&Cpu, lengths, factors, state);
            let actual = stepped(&cuda(), lengths, factors, state);
            assert!(bits(&actual) == bits(&expected), "{state:?} {lengths:?}");
        }
    }
}

#[test]
fn a_factor_that_is_not_finite_leaves_everything_as_it_is() {
    for state in STATES {
        for factor in [f64::NAN, f64::INFINITY, 1e300] {
            for actual in [
                stepped(&Cpu, &[9], [factor; 3], state),
                stepped(&cuda(), &[9], [factor; 3], state),
            ] {
                assert_eq!(actual, [[floats(0, 9), vec![0.0; 9], vec![0.0; 9]]]);
            }
        }
    }
}

/// The bf16 numbers next to a value on both sides, by magnitude.
fn neighbours(value: f32) -> [f32; 2] {
    let below = value.to_bits() & 0xffff_0000;
    [f32::from_bits(below), f32::from_bits(below + 0x1_0000)]
}

/// From the same zeros, the first step in either type updates parameters alike, and what is kept in
/// bf16 lies next to what was computed, on either side as often as it should.
#[test]
fn a_moment_is_rounded_by_chance_after_it_was_used() {
    let len = 1 << 14;
    let [exact, kept] = STATES.map(|state| {
        let mut tensors = [Tensor::new(&Cpu, "a", &floats(1, len), state)];
        step(&Cpu, &mut tensors, &[floats(2, len)], (1, 1.0, state)).unwrap();
        values(&Cpu, &tensors).remove(0)
    });
    assert_eq!(exact[0], kept[0]);
    for which in [1, 2] {
        let (mut sum, mut variance, mut up) = (0.0, 0.0, 0);
        for (exact, kept) in exact[which].iter().zip(&kept[which]) {
            let [below, above] = neighbours(*exact);
            assert!([below, above].contains(kept), "{exact} {kept}");
            // In units of the distance between the two.
            let share = f64::from((exact - below) / (above - below));
            sum += if *kept == below { -share } else { 1.0 - share };
            variance += share * (1.0 - share);
            up += usize::from(*kept != below);
        }
        assert!(sum.abs() < 5.0 * variance.sqrt(), "moment {which} is off by {sum} of {len}");
        assert!((len / 3..len * 2 / 3).contains(&up), "{up} of {len} are rounded up");
    }
}

/// Rounded to nearest, a second moment would stop at about a quarter: the thousandth of what is
/// left is less there than half the distance of two bf16 numbers.
#[test]
fn a_second_moment_in_bf16_follows_the_gradient() {
    let (len, steps) = (4096, 2000);
    let mut tensors = [Tensor::new(&Cpu, "a", &vec![0.0; len], StateType::Bf16)];
    let gradients = [vec![1.0; len]];
    for index in 1..=steps {
        step(&Cpu, &mut tensors, &gradients, (index, 1.0, StateType::Bf16)).unwrap();
    }
    let [_, first, second] = values(&Cpu, &tensors).remove(0);
    let mean = |values: &[f32]| values.iter().map(|v| f64::from(*v)).sum::<f64>() / len as f64;
    let expected = 1.0 - 0.999f64.powi(steps as i32);
    assert!((mean(&second) / expected - 1.0).abs() < 2e-3, "{} {expected}", mean(&second));
    assert!((mean(&first) - 1.0).abs() < 2e-3, "{}", mean(&first));
}

/// What a value is rounded by depends on its tensor's name, the step and its place alone.
#[test]
fn the_other_tensors_do_not_matter() {
    let of = |names: &[&str], step_index| {
        let mut tensors: Vec<Tensor<Cpu>> =
            names.iter().map(|name| Tensor::new(&Cpu, name, &[0.0; 64], StateType::Bf16)).collect();
        let gradients = vec![floats(3, 64); names.len()];
        step(&Cpu, &mut tensors, &gradients, (step_index, 1.0, StateType::Bf16)).unwrap();
        values(&Cpu, &tensors).into_iter().map(|[_, first, _]| first).collect::<Vec<_>>()
    };
    let (both, alone) = (of(&["a", "b"], 1), of(&["b"], 1));
    assert_eq!(both[1], alone[0]);
    assert_ne!(both[0], both[1]);
    assert_ne!(of(&["b"], 2), alone);
}

#[test]
fn moments_of_another_type_and_short_buffers_are_refused() {
    fn refused<B: Backend>(backend: &B) {
        let mut tensors =
            STATES.map(|state| Tensor::new(backend, &format!("{state:?}"), &[0.0; 4], state));
        let gradients = vec![vec![1.0; 4]; 2];
        let told = step(backend, &mut tensors, &gradients, (1, 1.0, StateType::F32)).unwrap_err();
        let expected = "adamw: the moments of Bf16 are of another type than the optimizer's";
        assert_eq!(told.to_string(), expected);
        let gradients = vec![vec![1.0; 4], vec![1.0; 3]];
        tensors[1] = Tensor::new(backend, "b", &[0.0; 4], StateType::F32);
        let told = step(backend, &mut tensors, &gradients, (1, 1.0, StateType::F32)).unwrap_err();
        assert!(told.to_string().contains("gradient"), "{told}");
        for [parameter, first, second] in values(backend, &tensors) {
            assert_eq!([parameter, first, second], [vec![0.0; 4], vec![0.0; 4], vec![0.0; 4]]);
        }
    }
    refused(&Cpu);
    refused(&cuda());
}
