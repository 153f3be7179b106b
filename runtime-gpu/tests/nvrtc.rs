//! NVRTC compiles without a GPU, errors are values, and results come back from the cache.
//!
//! Where the project's `.deps/cuda` is missing (`make setup` makes it), all but the first test say so and pass.
use lapidary_runtime_gpu::compile::{
    CompileError, CompileOptions, Nvrtc, Source, compile, compile_all, library_folder,
};
use std::path::{Path, PathBuf};

const GOOD: &str = "extern \"C\" __global__ void scale(float* x, float by) { x[threadIdx.x] *= by; }";

fn source(name: &str, text: &str) -> Source {
    Source { name: name.into(), text: text.into() }
}

fn nvrtc() -> Option<Nvrtc> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let Some(wheels) = here.ancestors().map(|f| f.join(".deps/cuda")).find(|f| f.is_dir()) else {
        eprintln!("skipped: no .deps/cuda; `make setup` fetches NVRTC");
        return None;
    };
    Some(Nvrtc::open(&library_folder(&wheels)).expect("NVRTC opens where its wheel is"))
}

#[test]
fn a_missing_library_is_an_error_that_says_what_to_do() {
    let error = Nvrtc::open(Path::new("/nonexistent")).expect_err("there is nothing");
    assert!(matches!(&error, CompileError::Missing { directory, .. } if directory == "/nonexistent"));
    assert!(error.to_string().contains("make setup"));
}

#[test]
fn ptx_cubin_and_resources_come_out_for_any_architecture() {
    let Some(nvrtc) = nvrtc() else { return };
    for arch in ["sm_80", "sm_90a"] {
        let compiled =
            compile(&nvrtc, &source("scale", GOOD), &CompileOptions::new(arch)).expect("it compiles");
        assert!(compiled.ptx.contains(".entry scale") && compiled.ptx.contains(&format!(".target {arch}")));
        assert_eq!(&compiled.cubin[..4], b"\x7fELF");
        assert!(compiled.resources.registers > 0 && compiled.resources.spill_stores == 0);
    }
}

#[test]
fn errors_name_the_kernel_and_carry_the_log() {
    let Some(nvrtc) = nvrtc() else { return };
    let options = CompileOptions::new("sm_80");
    let said =
        |text: &str| compile(&nvrtc, &source("bad", text), &options).expect_err("it is wrong").to_string();
    assert!(said("__global__ void f() { undefined_thing; }").contains("undefined_thing"));
    assert!(said("a\0b").contains("zero byte"));
    let unknown = compile(&nvrtc, &source("scale", GOOD), &CompileOptions::new("sm_1"));
    assert!(matches!(unknown, Err(CompileError::Rejected { .. })));
}

#[test]
fn many_compile_at_once_in_order_and_the_second_time_from_the_cache() -> Result<(), Box<dyn std::error::Error>>
{
    let Some(nvrtc) = nvrtc() else { return Ok(()) };
    let cache = tempfile::tempdir()?;
    let folder = Some(cache.path().join("kernels"));
    let options = CompileOptions { cache: folder, jobs: 3, ..CompileOptions::new("sm_80") };
    let mut sources: Vec<Source> =
        (0..5).map(|i| source(&format!("k{i}"), &GOOD.replace("scale", &format!("k{i}")))).collect();
    sources[3].text = "nonsense".into();
    for cached in [false, true] {
        let results = compile_all(&nvrtc, &sources, &options);
        for (i, result) in results.iter().enumerate() {
            match result {
                Ok(compiled) => {
                    assert!(compiled.ptx.contains(&format!(".entry k{i}")));
                    assert_eq!(compiled.cached, cached);
                }
                Err(_) => assert_eq!(i, 3),
            }
        }
    }
    Ok(())
}
