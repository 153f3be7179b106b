//! The dialects as texts: what is accepted comes back as it was, what is wrong is refused where it stands; the handles,
//! builders, pipelines and the import on top of them.

mod build;
mod docs;
mod errors;
mod fold;
mod import;
mod pipeline;
mod round_trip;
mod training;

use lapidary_ir::{IrContext, Module};

/// Values that the texts of the tests may read.
const ARGUMENTS: &str = "%i: index, %ids: tensor<2x8xi32>, %x: tensor<2x8x64xf32>, %h: tensor<2x8x64xbf16>, \
    %t: tensor<128x64xf32>, %w: tensor<64x64xf32>, %w9: tensor<64x9xf32>, %n: tensor<64xf32>, %n9: tensor<9xf32>, \
    %k: tensor<2x8x32xf32>, %s: tensor<2x4x8x8xf32>, %s9: tensor<2x4x8x9xf32>";

/// A function around `body`, which begins on line 2.
fn in_function(body: &str) -> String {
    format!("func.func @f({ARGUMENTS}) {{\n{body}\nreturn\n}}\n")
}

fn parse<'c>(cx: &'c IrContext, text: &str) -> Module<'c> {
    Module::parse(cx, text, "t.mlir").unwrap_or_else(|error| panic!("{error}\n{text}"))
}
