//! The pages in ir/docs are what mlir-tblgen makes of the dialects' definitions. `BLESS=1` rewrites them.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

fn generated(dialect: &str) -> String {
    let (llvm, crate_dir) = (env!("LAPIDARY_LLVM"), env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new(format!("{llvm}/bin/mlir-tblgen"));
    command.args(["-gen-dialect-doc", &format!("-dialect={dialect}"), "-I", &format!("{llvm}/include")]);
    command.args(["-I", &format!("{crate_dir}/dialects"), &format!("{crate_dir}/dialects/{dialect}.td")]);
    let output = command.output().expect("mlir-tblgen starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("a page is text");
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn pages_are_up_to_date() {
    for dialect in ["nn", "wafer", "cuda"] {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/{dialect}.md"));
        let text = generated(dialect);
        if env::var_os("BLESS").is_some() {
            fs::write(&page, &text).expect("the page is written");
        }
        let stored = fs::read_to_string(&page).unwrap_or_default();
        assert!(stored == text, "{} is out of date: run the test with BLESS=1", page.display());
    }
}

#[test]
fn every_op_has_a_description() {
    for dialect in ["nn", "wafer", "cuda"] {
        let text = generated(dialect);
        for op in text.split("\n### `").skip(1) {
            let name = op.split('`').next().unwrap_or_default();
            let syntax_end =
                op.find("operation ::=").and_then(|at| op[at..].find("```").map(|end| at + end + 3));
            let after = syntax_end.map_or(op, |end| &op[end..]).trim_start();
            let described =
                !["Traits:", "Interfaces:", "####", "###"].iter().any(|start| after.starts_with(start));
            assert!(described, "{name} has no description");
        }
    }
}
