//! The instructions of kernels: their code is cut out of the cubins, laid end to end and disassembled by one run of nvdisasm,
//! whose start costs more than a kernel does.
use lapidary_runtime_gpu::compile::Compiled;
use std::path::Path;
use std::process::Command;

/// The text of each kernel's instructions, in their order.
///
/// # Panics
/// Where the tool is missing, or a cubin is no ELF file.
pub fn instructions(wheels: &Path, arch: &str, kernels: &[(String, Compiled)]) -> Vec<String> {
    let code: Vec<Vec<u8>> = kernels.iter().map(|(_, compiled)| code(&compiled.cubin)).collect();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("code.bin");
    std::fs::write(&file, code.concat()).expect("a file");
    let mut tool = Command::new(wheels.join("nvidia/cu13/bin/nvdisasm"));
    let out = tool.args(["-ndf", "-b", &arch.replace("sm_", "SM")]).arg(&file).output();
    let out = out.expect("nvdisasm runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut told = vec![String::new(); code.len()];
    let ends: Vec<usize> = code
        .iter()
        .scan(0, |end, code| {
            *end += code.len();
            Some(*end)
        })
        .collect();
    for line in text.lines() {
        let Some(at) = address(line) else { continue };
        let kernel = ends.iter().position(|end| at < *end).expect("an address within the file");
        told[kernel].push_str(line);
        told[kernel].push('\n');
    }
    assert!(told.iter().all(|text| text.contains("EXIT")), "every kernel has instructions");
    told
}

/// The address of an instruction, as `/*0040*/` at the line's start.
fn address(line: &str) -> Option<usize> {
    let (digits, _) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    usize::from_str_radix(digits, 16).ok()
}

/// What the sections `.text.*` of a 64-bit ELF file hold.
fn code(elf: &[u8]) -> Vec<u8> {
    let number =
        |at: usize, bytes: usize| (0..bytes).fold(0usize, |sum, i| sum | usize::from(elf[at + i]) << (8 * i));
    let (table, count, names) = (number(0x28, 8), number(0x3c, 2), number(0x3e, 2));
    let section = |i: usize| table + 64 * i;
    let names = number(section(names) + 0x18, 8);
    let mut code = Vec::new();
    for at in (0..count).map(section) {
        let (from, size) = (number(at + 0x18, 8), number(at + 0x20, 8));
        if elf[names + number(at, 4)..].starts_with(b".text.") {
            code.extend_from_slice(&elf[from..from + size]);
        }
    }
    code
}
