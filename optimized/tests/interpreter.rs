//! The interpreter on compiled kernels: it computes what they say, and catches what is wrong.
//!
//! `kernels/faults.cu` breaks one rule in each kernel, and marks the line that must be named.

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

static FEATURES: Module = Module {
    name: "features",
    source: include_str!("kernels/features.cu"),
    ptx: include_str!("kernels/features.ptx"),
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

/// A buffer of numbers of any type, and numbers of any type from one.
fn upload<T: bytemuck::Pod>(machine: &Interpreter, values: &[T]) -> HostBuffer {
    let mut buffer = machine.zeros(values.len(), size_of::<T>()).unwrap();
    machine.write(bytemuck::cast_slice(values), &mut buffer, 0).unwrap();
    buffer
}

fn download<T: bytemuck::Pod>(machine: &Interpreter, buffer: &HostBuffer, len: usize) -> Vec<T> {
    let mut values = vec![T::zeroed(); len];
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
    for module in [&FAULTS, &FEATURES, &MATMUL, &SPEED] {
        assert_eq!(module.ptx.lines().next().unwrap(), stamp(module), "{}", module.name);
    }
}

#[test]
fn a_block_sums_with_barriers_and_races_without() {
    let machine = Interpreter::with_orders(4);
    let values = ramp(3 * 256);
    let (input, mut sums) = (upload(&machine, &values), upload(&machine, &[0f32; 3]));
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut sums)];
    machine.launch(kernel("sum"), threads(3, 256), arguments).unwrap();
    let expected: Vec<f32> = values.chunks(256).map(|block| block.iter().sum()).collect();
    assert_eq!(download::<f32>(&machine, &sums, 3), expected);
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut sums)];
    let message = fault("sum_without_barrier", threads(3, 256), arguments);
    contains(&message, &["race", "`partial`", "by thread"]);
}

#[test]
fn a_warp_sums_by_shuffles_that_all_its_lanes_take_part_in() {
    let machine = Interpreter::new();
    let values = ramp(32);
    let (input, mut sums) = (upload(&machine, &values), upload(&machine, &[0f32; 32]));
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut sums)];
    machine.launch(kernel("warp_sum"), threads(1, 32), arguments).unwrap();
    assert_eq!(download::<f32>(&machine, &sums, 1)[0], values.iter().sum::<f32>());
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut sums)];
    let message = fault("warp_sum_of_half", threads(1, 32), arguments);
    contains(&message, &["diverged", "lanes 0-15 wait at", "lanes 16-31 have exited"]);
}

#[test]
fn accesses_outside_and_askew_are_caught() {
    let machine = Interpreter::new();
    let (input, mut output) = (upload(&machine, &ramp(100)), upload(&machine, &[0f32; 100]));
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
    let mut output = upload(&machine, &[0f32; 64]);
    let message = fault("divergent_barrier", threads(1, 64), &mut [Argument::Out(&mut output)]);
    contains(&message, &["diverged", "exited"]);
}

#[test]
fn an_input_cannot_be_written_to() {
    let machine = Interpreter::new();
    let (input, mut output) = (upload(&machine, &ramp(32)), upload(&machine, &[0f32; 32]));
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut output)];
    contains(&fault("writes_input", threads(1, 32), arguments), &["`values`, which is an input"]);
}

#[test]
fn shared_memory_is_written_before_it_is_used() {
    let machine = Interpreter::new();
    let mut output = upload(&machine, &[0f32; 64]);
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
    assert_eq!(download::<u32>(&machine, &count, 1), [8]);
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
    let input = upload(&machine, &divisors);
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
        (upload(&machine, &values), upload(&machine, &vec![0f32; stages * 128]));
    let count = stages as i32;
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut output), Argument::I32(count)];
    machine.launch(kernel("copies"), threads(1, 32), arguments).unwrap();
    let reversed: Vec<f32> = values
        .chunks(128)
        .flat_map(|stage| stage.chunks(4).rev().flatten().copied().collect::<Vec<f32>>())
        .collect();
    assert_eq!(download::<f32>(&machine, &output, stages * 128), reversed);
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut output), Argument::I32(count)];
    let message = fault("copies_without_wait", threads(1, 32), arguments);
    contains(&message, &["asynchronous copy", "not waited for"]);
}

#[test]
fn lanes_hand_on_through_shared_memory_behind_a_barrier_of_the_warp() {
    let machine = Interpreter::with_orders(3);
    let mut output = upload(&machine, &[0f32; 64]);
    let arguments = &mut [Argument::Out(&mut output)];
    machine.launch(kernel("handed_on"), threads(1, 64), arguments).unwrap();
    let expected: Vec<f32> = (0..64).map(|i| (i ^ 1) as f32).collect();
    assert_eq!(download::<f32>(&machine, &output, 64), expected);
    let message = fault("handed_on_too_early", threads(1, 64), &mut [Argument::Out(&mut output)]);
    contains(&message, &["race", "`tile`"]);
}

#[test]
fn launches_are_checked_against_the_kernel() {
    let machine = Interpreter::new();
    let input = upload(&machine, &[0f32; 32]);
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
    let matrix = |len: usize, seed: usize| {
        let bits = (0..len).map(|i| (bf16(i * 3 + seed).to_bits() >> 16) as u16);
        upload(&machine, &bits.collect::<Vec<u16>>())
    };
    let (a, b) = (matrix(rows * inner, 1), matrix(columns * inner, 5));
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
    let output = download::<f32>(&machine, &output, rows * columns);
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

fn feature(entry: &'static str) -> Kernel {
    Kernel { module: &FEATURES, entry }
}

#[test]
fn threads_have_memory_of_their_own_and_modules_have_tables() {
    let machine = Interpreter::with_orders(2);
    let threads_in_all = 96;
    let order: Vec<i32> =
        (0..threads_in_all).flat_map(|t| (0..4).map(move |i| ((i + t) % 4) as i32)).collect();
    let (input, mut output) = (upload(&machine, &order), upload(&machine, &[0f32; 96]));
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut output)];
    machine.launch(feature("tables"), threads(2, 48), arguments).unwrap();
    let expected: Vec<f32> = (0..threads_in_all)
        .map(|t| {
            let own = |place: usize| (0..4).find(|i| (i + t) % 4 == place).unwrap() as f32;
            (0..4).map(|i| own((t + i) % 4) * [0.5, 1.0, 2.0, 4.0][i]).sum()
        })
        .collect();
    assert_eq!(download::<f32>(&machine, &output, threads_in_all), expected);
}

#[test]
fn lanes_leave_loops_when_they_are_done_and_meet_again() {
    let machine = Interpreter::with_orders(3);
    let numbers: Vec<u32> = (1..=90).collect();
    let (input, mut output) = (upload(&machine, &numbers), upload(&machine, &[0u32; 90]));
    let shape = Shape { grid: [2, 1, 1], block: [3, 3, 5], dynamic_shared: 0 };
    let arguments = &mut [Argument::In(&input), Argument::Out(&mut output)];
    machine.launch(feature("collatz"), shape, arguments).unwrap();
    let expected: Vec<u32> = numbers
        .iter()
        .map(|number| {
            let next = |n: &u32| Some(if n.is_multiple_of(2) { n / 2 } else { 3 * n + 1 });
            std::iter::successors(Some(*number), next).position(|n| n == 1).unwrap().min(40) as u32
        })
        .collect();
    assert_eq!(download::<u32>(&machine, &output, 90), expected);
}

#[test]
fn bytes_have_writers_of_their_own_and_the_launch_sizes_shared_memory() {
    let machine = Interpreter::with_orders(3);
    let bytes: Vec<i8> = (0..150).map(|i| (i - 75) as i8).collect();
    let (input, mut output) = (upload(&machine, &bytes), upload(&machine, &[0i8; 150]));
    let mut launch = |dynamic_shared| {
        let shape = Shape { dynamic_shared, ..threads(2, 75) };
        let arguments = &mut [Argument::In(&input), Argument::Out(&mut output)];
        machine.launch(feature("reverse_bytes"), shape, arguments)
    };
    let message = launch(74).unwrap_err().to_string();
    contains(&message, &["out of bounds", "`line` byte 74", "`line` 74 bytes"]);
    launch(75).unwrap();
    let expected: Vec<i8> =
        bytes.chunks(75).flat_map(|block| block.iter().rev().map(|byte| -byte)).collect();
    assert_eq!(download::<i8>(&machine, &output, 150), expected);
}

#[test]
fn a_histogram_of_votes_shuffles_and_atomic_operations() {
    let machine = Interpreter::with_orders(3);
    let values: Vec<i32> = (0..192).map(|i| (i * i + i / 7) % 8).collect();
    let input = upload(&machine, &values);
    let mut counts = upload(&machine, &[0u32; 8]);
    let mut ballots = upload(&machine, &[0u32; 6]);
    let mut neighbours = upload(&machine, &[0i32; 192]);
    let mut largest = upload(&machine, &[0u64; 1]);
    let arguments = &mut [
        Argument::In(&input),
        Argument::Out(&mut counts),
        Argument::Out(&mut ballots),
        Argument::Out(&mut neighbours),
        Argument::Out(&mut largest),
    ];
    machine.launch(feature("histogram"), threads(3, 64), arguments).unwrap();
    let count = |value| values.iter().filter(|other| **other == value).count() as u32;
    assert_eq!(download::<u32>(&machine, &counts, 8), (0..8).map(count).collect::<Vec<u32>>());
    let odd: Vec<u32> = values
        .chunks(32)
        .map(|warp| warp.iter().map(|value| value % 2).sum::<i32>() as u32)
        .collect();
    assert_eq!(download::<u32>(&machine, &ballots, 6), odd);
    let next: Vec<i32> = (0..192)
        .map(|t| {
            let sevens = values[t / 32 * 32..][..32].contains(&7);
            values[if t % 8 == 7 { t } else { t + 1 }] + if sevens { 100 } else { 0 }
        })
        .collect();
    assert_eq!(download::<i32>(&machine, &neighbours, 192), next);
    let most = (0..192).map(|t| (values[t] as u64) << 40 | t as u64).max().unwrap();
    assert_eq!(download::<u64>(&machine, &largest, 1), [most]);
}

#[test]
fn the_compiler_s_functions_compute_what_they_say() {
    let machine = Interpreter::new();
    let x: Vec<f32> = (0..500).map(|i| (i as f32 - 250.0) / 16.0).collect();
    let len = x.len();
    let (input, mut output) = (upload(&machine, &x), upload(&machine, &vec![0f32; 8 * len]));
    let arguments =
        &mut [Argument::In(&input), Argument::Out(&mut output), Argument::I32(len as i32)];
    machine.launch(feature("functions"), threads(2, 256), arguments).unwrap();
    let output = download::<f32>(&machine, &output, 8 * len);
    let functions: [fn(f64) -> f64; 8] = [
        f64::exp,
        |v| ((v as f32).abs() + 0.1).ln().into(),
        f64::sin,
        f64::cos,
        |v| (1.0 / f64::from((v as f32).abs() + 0.1)).sqrt(),
        f64::tanh,
        |v| f64::from((v as f32).abs() + 0.1).powf(1.5),
        f64::exp,
    ];
    for (index, function) in functions.iter().enumerate() {
        for (i, x) in x.iter().enumerate() {
            let (ours, exact) = (f64::from(output[index * len + i]), function(f64::from(*x)));
            // The library's own bounds are 1 to 9 ulp; next to a zero of the logarithm, an ulp of
            // its argument.
            let allowed = 8.0 * f64::from(f32::EPSILON) * exact.abs().max(0.02);
            assert!((ours - exact).abs() <= allowed, "{index}: {x}: {ours} {exact}");
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
    let input = upload(&machine, &ramp(len));
    let other = upload(&machine, &ramp(len));
    let mut output = upload(&machine, &vec![0f32; len]);
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
