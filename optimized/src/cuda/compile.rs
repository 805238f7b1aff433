#![allow(unsafe_code)] // the compiler's library is C; reasons at the calls

//! Compiles kernels with NVRTC, for those who edit them. The program itself carries the result.

use std::ffi::{CStr, CString, c_char};
use std::ptr;

use cudarc::nvrtc::sys;
use sha2::{Digest, Sha256};

use super::launch::Module;

/// The compiler whose output is checked in.
pub const COMPILER: &str = "NVRTC 13.0.88";

/// Its version as the library tells it: that of the toolkit, without the build.
const VERSION: (i32, i32) = (13, 0);

/// What every kernel is compiled with: for every device from compute capability 8.0 on; a product
/// and a sum are two roundings; division and root are the nearest; the lines of the source are kept.
pub const FLAGS: &[&str] = &[
    "--gpu-architecture=compute_80",
    "--std=c++17",
    "--fmad=false",
    "--ftz=false",
    "--prec-div=true",
    "--prec-sqrt=true",
    "--generate-line-info",
];

/// What the kernels include.
const HEADERS: &[(&CStr, &str)] = &[
    (c"bf16.cuh", include_str!("bf16.cuh")),
    (c"kernels.cuh", include_str!("kernels.cuh")),
    (c"groups.cuh", include_str!("../ops/fake_quantize/groups.cuh")),
    (c"quantizer.cuh", include_str!("../ops/fake_quantize/quantizer.cuh")),
    (c"group_sums.cuh", include_str!("../ops/fake_quantize_backward/group_sums.cuh")),
    (c"mask.cuh", include_str!("../ops/fake_quantize_backward/mask.cuh")),
    (c"products.cuh", include_str!("../ops/weight_gradient/products.cuh")),
    (c"rounded_tiles.cuh", include_str!("../ops/attention_bf16/rounded_tiles.cuh")),
    (c"search.cuh", include_str!("../ops/init_scale/search.cuh")),
    (c"tiles.cuh", include_str!("../ops/attention/tiles.cuh")),
];

/// The first line of a compiled module: what it was made from.
///
/// The digest is over compiler, flags, headers and source, so a test can tell without a compiler
/// whether a file is out of date.
pub fn stamp(module: &Module) -> String {
    let mut digest = Sha256::new();
    let headers = HEADERS.iter().map(|(_, text)| *text);
    for part in [COMPILER].into_iter().chain(FLAGS.iter().copied()).chain(headers) {
        digest.update(part.as_bytes());
        digest.update([0]);
    }
    digest.update(module.source.as_bytes());
    let hex: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("// {}.cu, {COMPILER}: {hex}", module.name)
}

/// The text of `<name>.ptx`.
///
/// # Errors
/// When the library is missing or of another version; the compiler's messages.
pub fn compile(module: &Module) -> Result<String, String> {
    // SAFETY: looks for a library and calls nothing in it.
    if !unsafe { sys::is_culib_present() } {
        return Err(format!("libnvrtc is not installed; kernels need {COMPILER}"));
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two valid pointers to integers.
    check(unsafe { sys::nvrtcVersion(&mut major, &mut minor) })?;
    if (major, minor) != VERSION {
        return Err(format!("libnvrtc is {major}.{minor}, kernels need {COMPILER}"));
    }
    let text = |text: &str| CString::new(text).map_err(|_| "a text holds a zero byte".to_owned());
    let (source, name) = (text(module.source)?, text(&format!("{}.cu", module.name))?);
    let headers = HEADERS.iter().map(|(_, body)| text(body)).collect::<Result<Vec<_>, _>>()?;
    let header_texts: Vec<*const c_char> = headers.iter().map(|body| body.as_ptr()).collect();
    let header_names: Vec<*const c_char> = HEADERS.iter().map(|(name, _)| name.as_ptr()).collect();
    let flags = FLAGS.iter().map(|flag| text(flag)).collect::<Result<Vec<_>, _>>()?;
    let flags: Vec<*const c_char> = flags.iter().map(|flag| flag.as_ptr()).collect();
    let mut program = ptr::null_mut();
    // SAFETY: every string ends with a zero and outlives the call; both arrays have the given length.
    check(unsafe {
        sys::nvrtcCreateProgram(
            &mut program,
            source.as_ptr(),
            name.as_ptr(),
            HEADERS.len() as i32,
            header_texts.as_ptr(),
            header_names.as_ptr(),
        )
    })?;
    let mut program = Program(program);
    // SAFETY: the program is valid, the array has the given length, its strings live in `flags`.
    let compiled =
        unsafe { sys::nvrtcCompileProgram(program.0, flags.len() as i32, flags.as_ptr()) };
    if check(compiled).is_err() {
        return Err(program.text(sys::nvrtcGetProgramLogSize, sys::nvrtcGetProgramLog)?);
    }
    let ptx = program.text(sys::nvrtcGetPTXSize, sys::nvrtcGetPTX)?;
    let lines = ptx.trim_end_matches('\0').lines().map(without_folder);
    Ok(format!("{}\n{}\n", stamp(module), lines.collect::<Vec<_>>().join("\n")))
}

/// The compiler puts the folder that it ran in before the names of its sources: the same source
/// would give other bytes elsewhere.
fn without_folder(line: &str) -> String {
    match (line.trim_start().strip_prefix(".file"), line.split_once('"')) {
        (Some(_), Some((head, path))) => {
            format!("{head}\"{}", path.rsplit('/').next().unwrap_or(path))
        }
        _ => line.to_owned(),
    }
}

/// A program of the library, given back when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    fn text(
        &mut self,
        size_of: unsafe fn(sys::nvrtcProgram, *mut usize) -> sys::nvrtcResult,
        text_of: unsafe fn(sys::nvrtcProgram, *mut c_char) -> sys::nvrtcResult,
    ) -> Result<String, String> {
        let mut size = 0;
        // SAFETY: the program is valid until it is dropped, `size` is a valid pointer.
        check(unsafe { size_of(self.0, &mut size) })?;
        let mut bytes = vec![0u8; size];
        // SAFETY: the buffer has the size that the library asked for.
        check(unsafe { text_of(self.0, bytes.as_mut_ptr().cast()) })?;
        String::from_utf8(bytes).map_err(|_| "the compiler's text is not UTF-8".to_owned())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is valid and is not used again.
        let _ = unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn check(result: sys::nvrtcResult) -> Result<(), String> {
    match result {
        sys::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        other => Err(format!("libnvrtc: {other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::without_folder;

    #[test]
    fn only_the_folder_of_a_source_goes() {
        assert_eq!(
            without_folder("\t.file\t2 \"/a/b c/kernels.cuh\""),
            "\t.file\t2 \"kernels.cuh\""
        );
        assert_eq!(without_folder("\tadd.s32 \t%r1, %r2, 1;"), "\tadd.s32 \t%r1, %r2, 1;");
    }
}
