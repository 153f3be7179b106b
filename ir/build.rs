//! Generates the dialects' C++ from their `.td` records with mlir-tblgen and compiles it.
//!
//! Reads the prefix of LLVM from `MLIR_SYS_220_PREFIX` (set in `.cargo/config.toml`).

use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs};

/// The version that melior and mlir-sys are pinned to.
const LLVM_MAJOR: &str = "22";
const DIALECTS: [&str; 3] = ["nn", "wafer", "cuda"];
/// Generators of mlir-tblgen, and the end of the `.td` name that each reads.
const GENERATED: [(&str, &str); 10] = [
    ("dialect-decls", ""),
    ("dialect-defs", ""),
    ("enum-decls", "_enums"),
    ("enum-defs", "_enums"),
    ("attrdef-decls", ""),
    ("attrdef-defs", ""),
    ("typedef-decls", ""),
    ("typedef-defs", ""),
    ("op-decls", ""),
    ("op-defs", ""),
];

fn main() {
    let prefix = llvm_prefix();
    check_c_api(&prefix);
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-changed=dialects");
    println!("cargo::rerun-if-env-changed=MLIR_SYS_220_PREFIX");
    for dialect in DIALECTS {
        for (kind, suffix) in GENERATED {
            generate(&prefix, &out, dialect, kind, suffix);
        }
    }
    compile(&prefix, &out);
    // The test of ir/docs runs the same generator.
    println!("cargo::rustc-env=LAPIDARY_LLVM={}", prefix.display());
}

/// The folder of LLVM, or a message that says how to get it.
fn llvm_prefix() -> PathBuf {
    let prefix = env::var_os("MLIR_SYS_220_PREFIX")
        .map_or_else(|| PathBuf::from(format!("/usr/lib/llvm-{LLVM_MAJOR}")), PathBuf::from);
    let needed = ["bin/mlir-tblgen", "include/mlir/IR/OpBase.td", "include/mlir-c/IR.h"];
    let missing: Vec<String> = needed
        .iter()
        .map(|file| prefix.join(file))
        .filter(|file| !file.exists())
        .map(|file| file.display().to_string())
        .collect();
    if missing.is_empty() {
        return prefix;
    }
    fail(&format!(
        "MLIR {LLVM_MAJOR} is not complete: {} not found. Run `make setup`, or install the Debian packages \
         llvm-{LLVM_MAJOR}-dev libmlir-{LLVM_MAJOR}-dev mlir-{LLVM_MAJOR}-tools libpolly-{LLVM_MAJOR}-dev \
         libclang1-{LLVM_MAJOR} libclang-common-{LLVM_MAJOR}-dev libzstd-dev zlib1g-dev g++, \
         or set MLIR_SYS_220_PREFIX to another installation",
        missing.join(", ")
    ))
}

/// Debian has MLIR's C API as static archives only; the workspace links the shared one that `make setup` makes.
fn check_c_api(prefix: &Path) {
    println!("cargo::rerun-if-env-changed=MLIR_SYS_LINK_SHARED");
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/lib/libMLIR-C.so");
    let shared = env::var_os("MLIR_SYS_LINK_SHARED").is_some();
    if shared && !own.exists() && !prefix.join("lib/libMLIR-C.so").exists() {
        fail("MLIR's shared C API, .deps/lib/libMLIR-C.so, is not there: run `make setup`, which makes it")
    }
}

/// Runs one generator of mlir-tblgen; the result is written only when it differs, so that nothing is rebuilt in vain.
fn generate(prefix: &Path, out: &Path, dialect: &str, kind: &str, suffix: &str) {
    let target = out.join(format!("{dialect}_{}.inc", kind.replace('-', "_")));
    let mut command = Command::new(prefix.join("bin/mlir-tblgen"));
    command.arg(format!("-gen-{kind}")).args(["-I", "dialects", "-I"]).arg(prefix.join("include"));
    for filter in ["dialect", "attrdefs-dialect", "typedefs-dialect"] {
        command.arg(format!("-{filter}={dialect}"));
    }
    let result = command.arg(format!("dialects/{dialect}{suffix}.td")).output();
    let output = result.unwrap_or_else(|error| fail(&format!("mlir-tblgen does not start: {error}")));
    if !output.status.success() {
        fail(&format!("mlir-tblgen -gen-{kind} {dialect}.td: {}", String::from_utf8_lossy(&output.stderr)));
    }
    if fs::read(&target).ok().as_deref() != Some(&output.stdout) {
        fs::write(&target, &output.stdout)
            .unwrap_or_else(|error| fail(&format!("{}: {error}", target.display())));
    }
}

fn compile(prefix: &Path, out: &Path) {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .flag("-w")
        .debug(false)
        .flag("-fno-exceptions")
        .flag("-fno-rtti")
        .define("NDEBUG", None);
    // The C++ only checks and prints a few hundred ops at a time: optimising it would cost minutes of every build.
    build.opt_level(0);
    build.include("dialects").include(out).include(prefix.join("include"));
    build.file("dialects/door.cpp").file("dialects/traits.cpp");
    for dialect in DIALECTS {
        build.file(format!("dialects/{dialect}.cpp"));
    }
    build.file("dialects/nn_train.cpp").file("dialects/nn_shard.cpp");
    build.compile("lapidary_dialects");
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1)
}
