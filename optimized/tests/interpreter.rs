//! The interpreter on compiled kernels: it computes what they say, and catches what is wrong.
//!
//! `kernels/faults.cu` breaks one rule in each kernel, and marks the line that must be named.

use plumbline::backend::Storage;
use plumbline::cpu::Cpu;
use plumbline::cuda::{
    Argument, Host, HostBuffer, Interpreter, Kernel, Launcher, Module, Shape, compile::stamp,
};
use plumbline::ops::swiglu::Swiglu;

static FAULTS: Module = Module {
    name: "faults",
    source: include_str!("kernels/faults.cu"),
    ptx: include_str!("kernels/faults.ptx"),
};

static MATMUL: Module = Module {
    name: "matmul",
    source: include_str!("kernels/matmul.cu"),
    ptx: include_str!("kernels/matmul.ptx"),
};

static SPEED: Module = Module {
    name: "speed",
    source: include_str!("kernels/speed.cu"),
    ptx: include_str!("kernels/speed.ptx"),
};

fn kernel(entry: &'static str) -> Kernel {
    Kernel { module: &FAULTS, entry }
}

fn threads(blocks: usize, threads: u32) -> Shape {
    Shape::line(blocks, threads)
}

fn floats(machine: &Interpreter, values: &[f32]) -> HostBuffer {
    let mut buffer = machine.zeros(values.len(), 4).unwrap();
    machine.write(bytemuck::cast_slice(values), &mut buffer, 0).unwrap();
    buffer
}

fn content(machine: &Interpreter, buffer: &HostBuffer, len: usize) -> Vec<f32> {
    let mut values = vec![0f32; len];
    machine.read(buffer, 0, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

fn ramp(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i % 37) as f32 - 18.0).collect()
}

/// Launches a kernel that must fail, at the line marked with its name; the message.
fn fault(entry: &'static str, shape: Shape, arguments: &mut [Argument<'_, HostBuffer>]) -> String {
    let machine = Interpreter::new().budget(1 << 16);
    let message = machine.launch(kernel(entry), shape, arguments).unwrap_err().to_string();
    let mark = format!("WRONG: {entry}");
    let line = FAULTS.source.lines().position(|line| line.ends_with(&mark));
    let line = format!("faults.cu:{} ", line.expect("the line is marked") + 1);
    assert!(message.contains(&line), "{message}\nis not at {line}");
    assert!(message.contains("block (") && message.contains("thread ("), "{message}");
    message
}

fn contains(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message}\nlacks: {part}");
    }
}

#[test]
fn fixtures_are_compiled_from_their_sources() {
    for module in [&FAULTS, &MATMUL, &SPEED] {
        assert_eq!(module.ptx.lines().next().unwrap(), stamp(module), "{}", module.name);
    }
}

#[test]
fn a_block_sums_with_barriers_and_races_without() {
    let machine = Interpreter::with_orders(4);
    let values = ramp(3 * 256);
    let (input, mut sums) = (floats(&machine, &values), floats(&machine, &[0.0; 3]));
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut sums)];
    machine.launch(kernel("sum"), threads(3, 256), arguments).unwrap();
    let expected: Vec<f32> = values.chunks(256).map(|block| block.iter().sum()).collect();
    assert_eq!(content(&machine, &sums, 3), expected);
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut sums)];
    let message = fault("sum_without_barrier", threads(3, 256), arguments);
    contains(&message, &["race", "`partial`", "by thread"]);
}

#[test]
fn a_warp_sums_by_shuffles_that_all_its_lanes_take_part_in() {
    let machine = Interpreter::new();
    let values = ramp(32);
    let (input, mut sums) = (floats(&machine, &values), floats(&machine, &[0.0; 32]));
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut sums)];
    machine.launch(kernel("warp_sum"), threads(1, 32), arguments).unwrap();
    assert_eq!(content(&machine, &sums, 1)[0], values.iter().sum::<f32>());
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut sums)];
    let message = fault("warp_sum_of_half", threads(1, 32), arguments);
    contains(&message, &["diverged", "lanes 0-15 wait at", "lanes 16-31 have exited"]);
}

#[test]
fn accesses_outside_and_askew_are_caught() {
    let machine = Interpreter::new();
    let (input, mut output) = (floats(&machine, &ramp(100)), floats(&machine, &[0.0; 100]));
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut output), Argument::I32(100)];
    let message = fault("overrun", threads(1, 128), arguments);
    contains(&message, &["thread (100, 0, 0)", "`values`", "byte 400", "(400 bytes)"]);
    let message = fault("shared_overrun", threads(1, 32), &mut [Argument::Out(&mut output)]);
    contains(&message, &["thread (31, 0, 0)", "`tile` byte 128"]);
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut output)];
    contains(&fault("askew", threads(1, 32), arguments), &["misaligned", "byte 4 of `values`"]);
}

#[test]
fn a_barrier_that_not_all_threads_reach_is_caught() {
    let machine = Interpreter::new();
    let mut output = floats(&machine, &[0.0; 64]);
    let message = fault("divergent_barrier", threads(1, 64), &mut [Argument::Out(&mut output)]);
    contains(&message, &["diverged", "exited"]);
}

#[test]
fn an_input_cannot_be_written_to() {
    let machine = Interpreter::new();
    let (input, mut output) = (floats(&machine, &ramp(32)), floats(&machine, &[0.0; 32]));
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut output)];
    contains(&fault("writes_input", threads(1, 32), arguments), &["`values`, which is an input"]);
}

#[test]
fn shared_memory_is_written_before_it_is_used() {
    let machine = Interpreter::new();
    let mut output = floats(&machine, &[0.0; 64]);
    let message = fault("uninitialized_shared", threads(1, 64), &mut [Argument::Out(&mut output)]);
    contains(&message, &["thread (63, 0, 0)", "`tile` byte 252 before it was written"]);
}

#[test]
fn blocks_that_touch_one_element_race_unless_atomic() {
    let machine = Interpreter::with_orders(3);
    let mut count = machine.zeros(1, 4).unwrap();
    let message = fault("blocks_race", threads(8, 32), &mut [Argument::Out(&mut count)]);
    contains(&message, &["`count` element 0", "block number"]);
    let mut count = machine.zeros(1, 4).unwrap();
    let arguments = &mut [Argument::Out(&mut count)];
    machine.launch(kernel("blocks_count"), threads(8, 32), arguments).unwrap();
    let mut bytes = [0; 4];
    machine.read(&count, 0, &mut bytes).unwrap();
    assert_eq!(u32::from_le_bytes(bytes), 8);
}

#[test]
fn a_result_that_depends_on_the_order_is_caught() {
    let machine = Interpreter::with_orders(8);
    let mut last = machine.zeros(1, 4).unwrap();
    let arguments = &mut [Argument::Out(&mut last)];
    // One thread of the host, so that the orders are those that the seeds give.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let result = pool.install(|| machine.launch(kernel("last_block"), threads(64, 32), arguments));
    contains(&result.unwrap_err().to_string(), &["depends on the order", "`last`"]);
}

#[test]
fn integers_are_not_divided_by_zero() {
    let machine = Interpreter::new();
    let divisors: Vec<i32> = (0..32).map(|i| 7 - i).collect();
    let mut input = machine.zeros(32, 4).unwrap();
    machine.write(bytemuck::cast_slice(&divisors), &mut input, 0).unwrap();
    let mut output = machine.zeros(32, 4).unwrap();
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut output)];
    let message = fault("divides_by_zero", threads(1, 32), arguments);
    contains(&message, &["thread (7, 0, 0)", "division by zero"]);
}

#[test]
fn a_loop_without_end_is_caught() {
    let machine = Interpreter::new().budget(10_000);
    let mut output = machine.zeros(1, 4).unwrap();
    let arguments = &mut [Argument::Out(&mut output)];
    let error = machine.launch(kernel("never_ends"), threads(1, 1), arguments).unwrap_err();
    contains(&error.to_string(), &["still running", "faults.cu:"]);
}

#[test]
fn asynchronous_copies_are_waited_for() {
    let machine = Interpreter::with_orders(3);
    let stages = 4;
    let values = ramp(stages * 128);
    let (input, mut output) =
        (floats(&machine, &values), floats(&machine, &vec![0.0; stages * 128]));
    let count = stages as i32;
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut output), Argument::I32(count)];
    machine.launch(kernel("copies"), threads(1, 32), arguments).unwrap();
    let reversed: Vec<f32> = values
        .chunks(128)
        .flat_map(|stage| stage.chunks(4).rev().flatten().copied().collect::<Vec<f32>>())
        .collect();
    assert_eq!(content(&machine, &output, stages * 128), reversed);
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut output), Argument::I32(count)];
    let message = fault("copies_without_wait", threads(1, 32), arguments);
    contains(&message, &["asynchronous copy", "not waited for"]);
}

#[test]
fn lanes_hand_on_through_shared_memory_behind_a_barrier_of_the_warp() {
    let machine = Interpreter::with_orders(3);
    let mut output = floats(&machine, &[0.0; 64]);
    let arguments = &mut [Argument::Out(&mut output)];
    machine.launch(kernel("handed_on"), threads(1, 64), arguments).unwrap();
    let expected: Vec<f32> = (0..64).map(|i| (i ^ 1) as f32).collect();
    assert_eq!(content(&machine, &output, 64), expected);
    let message = fault("handed_on_too_early", threads(1, 64), &mut [Argument::Out(&mut output)]);
    contains(&message, &["race", "`tile`"]);
}

#[test]
fn launches_are_checked_against_the_kernel() {
    let machine = Interpreter::new();
    let input = floats(&machine, &[0.0; 32]);
    let fails = |entry, shape, arguments: &mut [Argument<'_, HostBuffer>]| {
        machine.launch(kernel(entry), shape, arguments).unwrap_err().to_string()
    };
    contains(&fails("sum", threads(1, 256), &mut [Argument::In(&input)]), &["1 arguments"]);
    let arguments = &mut [Argument::In(&input), Argument::F32(1.0)];
    contains(&fails("sum", threads(1, 256), arguments), &["`sums` has not the type"]);
    contains(&fails("sum", threads(1, 2048), &mut []), &["at most 1024"]);
    contains(&fails("nothing", threads(1, 32), &mut []), &["no kernel nothing"]);
    machine.launch(kernel("sum"), threads(0, 256), &mut []).unwrap();
}

#[test]
fn a_product_on_tensor_cores_is_the_plain_product() {
    let machine = Interpreter::with_orders(2);
    let (rows, columns, inner) = (48, 32, 96);
    let bf16 = |i: usize| ((i * 7919 % 65) as f32 - 32.0) / 8.0;
    let upload = |len: usize, seed: usize| {
        let bits: Vec<u16> =
            (0..len).map(|i| (bf16(i * 3 + seed).to_bits() >> 16) as u16).collect();
        let mut buffer = machine.zeros(len, 2).unwrap();
        machine.write(bytemuck::cast_slice(&bits), &mut buffer, 0).unwrap();
        buffer
    };
    let (a, b) = (upload(rows * inner, 1), upload(columns * inner, 5));
    let mut output = machine.zeros(rows * columns, 4).unwrap();
    let shape = Shape::plane(columns / 16, rows / 16, 32);
    let arguments = &mut [
        Argument::In(&a),
        Argument::In(&b),
        Argument::Out(&mut output),
        Argument::I32(columns as i32),
        Argument::I32(inner as i32),
    ];
    machine.launch(Kernel { module: &MATMUL, entry: "matmul" }, shape, arguments).unwrap();
    let output = content(&machine, &output, rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            // Multiples of 1/64 with sums below 2^18: exact in every order.
            let sum: f32 = (0..inner)
                .map(|k| bf16((row * inner + k) * 3 + 1) * bf16((column * inner + k) * 3 + 5))
                .sum();
            assert_eq!(output[row * columns + column], sum, "row {row}, column {column}");
        }
    }
}

#[test]
fn swiglu_agrees_with_the_cpu() {
    let host = Host::new(Interpreter::with_orders(2)).unwrap();
    let len = 1000;
    let value = |i: usize, seed: usize| ((i * 7919 + seed * 104_729) % 4001) as f32 / 250.0 - 8.0;
    let inputs: Vec<Vec<f32>> =
        (0..3).map(|seed| (0..len).map(|i| value(i, seed)).collect()).collect();
    fn run<S: Swiglu>(backend: &S, len: usize, inputs: &[Vec<f32>]) -> [Vec<f32>; 3] {
        let upload = |i: usize| backend.upload(&inputs[i]).unwrap();
        let (gate, up, d_output) = (upload(0), upload(1), upload(2));
        let zeros = || backend.zeros(len).unwrap();
        let (mut output, mut d_gate, mut d_up) = (zeros(), zeros(), zeros());
        backend.swiglu(len, &gate, &up, &mut output).unwrap();
        backend.swiglu_backward(len, &gate, &up, &d_output, &mut d_gate, &mut d_up).unwrap();
        [output, d_gate, d_up].map(|buffer| backend.download(&buffer, len).unwrap())
    }
    let (ours, theirs) = (run(&host, len, &inputs), run(&Cpu, len, &inputs));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        for (i, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            // Two exponentials of a few ulp each; near a zero of 1 + gate * (1 - p) that is of the
            // terms' size, which |up * d_output| <= 64 bounds.
            let allowed = 16.0 * f32::EPSILON * theirs.abs().max(64.0);
            assert!((ours - theirs).abs() <= allowed, "{i}: {ours} {theirs}");
        }
    }
}

/// `cargo test --release -p plumbline --test interpreter -- --ignored --nocapture speed`
#[test]
#[ignore = "a measurement"]
fn speed_of_the_interpreter() {
    let machine = Interpreter::new();
    let len = 1 << 14;
    let input = floats(&machine, &ramp(len));
    let other = floats(&machine, &ramp(len));
    let mut output = floats(&machine, &vec![0.0; len]);
    let mut measure = |entry, shape, sizes: [i32; 2], inputs: &[&HostBuffer]| {
        let mut arguments: Vec<Argument<'_, HostBuffer>> =
            inputs.iter().map(|input| Argument::In(*input)).collect();
        arguments.push(Argument::Out(&mut output));
        arguments.extend(sizes.map(Argument::I32));
        let (begin, before) = (std::time::Instant::now(), machine.instructions());
        machine.launch(Kernel { module: &SPEED, entry }, shape, &mut arguments).unwrap();
        let seconds = begin.elapsed().as_secs_f64();
        let lanes = 32.0 * (machine.instructions() - before) as f64;
        println!("{entry}: {:.0} M lane-instructions/s in {seconds:.2} s", lanes / seconds / 1e6);
    };
    let tiles = Shape { grid: [8, 8, 1], block: [16, 16, 1], dynamic_shared: 0 };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        measure("iterate", Shape::elements(len), [len as i32, 4000], &[&input]);
        measure("tiled", tiles, [128, 128], &[&input, &other]);
    });
}
